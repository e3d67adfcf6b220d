-- Rows as the program of schema 5 left them, from a real hub; its root key is the tests'. Not generated anew: they are the past.
INSERT INTO config (key, value, schema, version) VALUES ('spawn.rate', '42', NULL, 1);
INSERT INTO config_history (key, version, value, schema, by, why, receipt_writer, receipt_sequence, at) VALUES ('spawn.rate', 1, '42', NULL, 'operator:ann', 'tests', 'wrt_jVFNlGfPKH-41-_a3VTYInKq', 2, '2026-11-21 17:16:42.048898+00');
