-- Rows as the program of schema 4 left them, from a real hub; its root key is the tests'. Not generated anew: they are the past.
INSERT INTO work (id, ordinal, kind, owner, origin, input, state, priority, run_at, expires_at, unique_key, limit_key, limit_max, attempts, attempts_max, token, worker, lease_until, cancel_requested, open_effect, progress, result, error, verdicts, created_at, started_at, finished_at) OVERRIDING SYSTEM VALUE VALUES ('job__acziiWJUy9rJzTckhLWFZG6', 2, 'lore_import', 'operator:ann', '{"chain": ["operator:ann"], "depth": 0, "receipt": {"writer": "wrt_ony4r3gzEn4cvX5cvvglpt62", "sequence": 2}, "session": "operator:ann", "tainted": false}', '{"revs": [1], "unchanged": 0}', 'succeeded', 0, '2026-11-21 17:16:41.921469+00', NULL, NULL, NULL, 1, 1, 5, 1, 'vm:9653', NULL, false, NULL, '{"done": 1, "total": 1, "message": "1 of 1 passages"}', '{"passages": 1, "documents": 1, "unchanged": 0}', NULL, '[]', '2026-11-21 17:16:41.921469+00', '2026-11-21 17:16:41.924565+00', '2026-11-21 17:16:41.980322+00');
INSERT INTO work (id, ordinal, kind, owner, origin, input, state, priority, run_at, expires_at, unique_key, limit_key, limit_max, attempts, attempts_max, token, worker, lease_until, cancel_requested, open_effect, progress, result, error, verdicts, created_at, started_at, finished_at) OVERRIDING SYSTEM VALUE VALUES ('job__I954uhB6iS_lBUzvg_md3wJ', 3, 'lore_import', 'operator:ann', '{"chain": ["operator:ann"], "depth": 0, "receipt": null, "session": "operator:ann", "tainted": false}', '{"revs": [2], "unchanged": 0}', 'queued', 0, '2026-11-21 17:16:43.346073+00', NULL, NULL, NULL, 1, 0, 5, 0, NULL, NULL, false, NULL, NULL, NULL, NULL, '[]', '2026-11-21 17:16:43.346073+00', NULL, NULL);
INSERT INTO work_step (work, name, outcome, at) VALUES ('job__acziiWJUy9rJzTckhLWFZG6', 'sizes@1', '[[1, 1]]', '2026-11-21 17:16:41.936265+00');
INSERT INTO work_step (work, name, outcome, at) VALUES ('job__acziiWJUy9rJzTckhLWFZG6', 'clear@1', '[1]', '2026-11-21 17:16:41.942073+00');
INSERT INTO work_step (work, name, outcome, at) VALUES ('job__acziiWJUy9rJzTckhLWFZG6', 'batch 0@1', '["doc_ergdHddG3qxJ3Cys_0vZILut"]', '2026-11-21 17:16:41.965096+00');
INSERT INTO lore_index (id, name, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 'shared', '2026-11-21 17:16:41.898223+00');
INSERT INTO lore_document (id, index_id, source, canon, rev, created_at) VALUES ('doc_ergdHddG3qxJ3Cys_0vZILut', 1, 'osric.md', true, 1, '2026-11-21 17:16:41.898223+00');
INSERT INTO lore_document (id, index_id, source, canon, rev, created_at) VALUES ('doc_tR8nz89G1_Lh08Pxg4hdiSUM', 1, 'bell.txt', true, NULL, '2026-11-21 17:16:43.322972+00');
INSERT INTO lore_edition (rev, document_id, title, format, characters, content_hash, knowledge, job_id, created_at) OVERRIDING SYSTEM VALUE VALUES (1, 'doc_ergdHddG3qxJ3Cys_0vZILut', 'The ferryman', 'markdown', 111, '1798c826a81026a586ad7cdab85710f527572e1c939a6bf3be6f0b547b37785f', '{}', 'job__acziiWJUy9rJzTckhLWFZG6', '2026-11-21 17:16:41.898223+00');
INSERT INTO lore_edition (rev, document_id, title, format, characters, content_hash, knowledge, job_id, created_at) OVERRIDING SYSTEM VALUE VALUES (2, 'doc_tR8nz89G1_Lh08Pxg4hdiSUM', 'Bell', 'text', 89, '86aaafbac2ca8e620d75abcb0164615102f43041b1d5e9451eb4d754376763d4', '{}', 'job__I954uhB6iS_lBUzvg_md3wJ', '2026-11-21 17:16:43.322972+00');
INSERT INTO lore_chunk (rev, ordinal, char_start, char_end, heading, content) VALUES (1, 0, 0, 110, 'The ferryman', '# The ferryman

Osric Vane ferried the drowned across the Mourning Water, and kept a lantern for each of them.');
INSERT INTO lore_effect (id, effect, document_id, rev, by, receipt_writer, receipt_sequence, at) OVERRIDING SYSTEM VALUE VALUES (1, 'imported', 'doc_ergdHddG3qxJ3Cys_0vZILut', 1, 'operator:ann', 'wrt_ony4r3gzEn4cvX5cvvglpt62', 2, '2026-11-21 17:16:41.944775+00');
INSERT INTO lore_page (rev, page, content) VALUES (1, 0, '# The ferryman

Osric Vane ferried the drowned across the Mourning Water, and kept a lantern for each of them.
');
INSERT INTO lore_page (rev, page, content) VALUES (2, 0, 'Marwen Sedge mended the bell of the lighthouse with copper from the wreck of the Gannet.
');
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'across', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'drown', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'ferri', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'ferryman', 1, 0, 3, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'kept', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'lantern', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'mourn', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'osric', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'vane', 1, 0, 1, 12);
INSERT INTO lore_posting (index_id, lexeme, rev, ordinal, tf, words) VALUES (1, 'water', 1, 0, 1, 12);
INSERT INTO lore_posting_total (rev, index_id, chunks, words) VALUES (1, 1, 1, 12);
SELECT pg_catalog.setval('public.lore_edition_rev_seq', 2, true);
SELECT pg_catalog.setval('public.lore_effect_id_seq', 1, true);
SELECT pg_catalog.setval('public.lore_index_id_seq', 2, true);
