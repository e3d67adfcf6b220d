-- Rows as the program of schema 11 left them: what silver did, what a cloud model cost, and a reservation of a process that died. Not generated anew: they are the past.
INSERT INTO spend_day (day, tier, asker, reserved, spent, requests, prompt_tokens, completion_tokens) VALUES ('2026-11-22', 'cloud', '*', '20000000', '3450000', '1', '812', '164');
INSERT INTO spend_day (day, tier, asker, reserved, spent, requests, prompt_tokens, completion_tokens) VALUES ('2026-11-22', 'cloud', 'person:anna', '0', '3450000', '1', '812', '164');
INSERT INTO spend_day (day, tier, asker, reserved, spent, requests, prompt_tokens, completion_tokens) VALUES ('2026-11-22', 'cloud', 'person:emil', '20000000', '0', '0', '0', '0');
INSERT INTO spend_day (day, tier, asker, reserved, spent, requests, prompt_tokens, completion_tokens) VALUES ('2026-11-22', 'silver', '*', '0', '0', '3', '2400', '310');
INSERT INTO spend_day (day, tier, asker, reserved, spent, requests, prompt_tokens, completion_tokens) VALUES ('2026-11-22', 'silver', 'person:anna', '0', '0', '3', '2400', '310');
INSERT INTO spend_reservation (id, day, tier, asker, engine, amount, created_at, expires_at) VALUES ('spd_1w5r52-0K60_icSoTKy3_IxP', '2026-11-22', 'cloud', 'person:emil', 'openai', '20000000', '2026-11-22 17:39:53.841229+00:00', '2026-11-22 17:49:53.841230+00:00');
