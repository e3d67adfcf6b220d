-- Rows as the program of schema 6 left them, from a real hub; its model was an endpoint of 8 dimensions. Not generated anew: they are the past.
INSERT INTO lore_model (id, name, url, dimensions, state, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 'tests-small at http://127.0.0.1:8127/v1, text 1', 'http://127.0.0.1:8127/v1', 8, 'serving', '2026-11-21 21:13:59.720207+00');
INSERT INTO lore_vector (rev, ordinal, model_id, part, index_id, embedding) VALUES (1, 0, 1, 0, 1, '[-0.11087222,0.47290394,-0.44575155,-0.2602103,0.056567457,-0.5272087,-0.16065158,0.43670076]');
SELECT setval(pg_get_serial_sequence('lore_model', 'id'), 1);
