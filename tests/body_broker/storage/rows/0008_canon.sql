-- Rows as the program of schema 8 left them: a load of canon and a fact added to it. Not generated anew: they are the past.
UPDATE canon SET version = 2;
INSERT INTO predicate (name, functional, meaning, says) VALUES ('eye_colour', true, 'The colour of somebody''s eyes.', '{"{subject} has {object} eyes"}');
INSERT INTO predicate (name, functional, meaning, says) VALUES ('kin_of', false, 'Whose kin somebody is.', '{}');
INSERT INTO fact (id, subject, predicate, object, valid_from, valid_to, known_by, source, loaded, retired_at, by, at) VALUES ('fact_667859721fc196c459148acd', 'mara', 'eye_colour', '"grey"', NULL, NULL, NULL, 'osric.md', true, NULL, 'operator:ann', '2026-11-21 21:15:42.77235+00');
INSERT INTO fact (id, subject, predicate, object, valid_from, valid_to, known_by, source, loaded, retired_at, by, at) VALUES ('fact_85e485cc6c43e1fa4511a768', 'ben', 'eye_colour', '"brown"', NULL, NULL, NULL, 'operator:ann', false, NULL, 'operator:ann', '2026-11-21 21:15:42.81909+00');
INSERT INTO fact (id, subject, predicate, object, valid_from, valid_to, known_by, source, loaded, retired_at, by, at) VALUES ('fact_be764c05848a04c96803c555', 'mara', 'kin_of', '"anna"', 3, NULL, '{anna}', 'osric.md', true, NULL, 'operator:ann', '2026-11-21 21:15:42.77235+00');
INSERT INTO plot_graph (id, title, version, by, at) VALUES ('harbour-plot', 'The harbour', 1, 'operator:ann', '2026-11-21 21:15:42.77235+00');
INSERT INTO plot_node (id, graph_id, ordinal, kind, title, summary, requires, effects, exclusive_group, story_time, spoiler_level) VALUES ('bell', 'harbour-plot', 0, 'beat', 'The bell', '', '{}', '[]', NULL, NULL, 0);
INSERT INTO plot_node (id, graph_id, ordinal, kind, title, summary, requires, effects, exclusive_group, story_time, spoiler_level) VALUES ('end', 'harbour-plot', 1, 'ending', 'The end', '', '{}', '[]', NULL, NULL, 0);
INSERT INTO plot_edge (graph_id, src, dst, kind, label) VALUES ('harbour-plot', 'bell', 'end', 'next', '');
INSERT INTO canon_change (version, change, fact_id, by, receipt_writer, receipt_sequence, at) VALUES (1, 'loaded', NULL, 'operator:ann', NULL, NULL, '2026-11-21 21:15:42.77235+00');
INSERT INTO canon_change (version, change, fact_id, by, receipt_writer, receipt_sequence, at) VALUES (2, 'fact_added', 'fact_85e485cc6c43e1fa4511a768', 'operator:ann', NULL, NULL, '2026-11-21 21:15:42.81909+00');
