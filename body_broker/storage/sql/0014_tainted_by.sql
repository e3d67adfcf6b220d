-- What tainted a session is told to whoever is asked about its calls: names of operations, the newest first, a few at most.

ALTER TABLE session_witness ADD COLUMN taints text[] NOT NULL DEFAULT '{}';
-- Who was tainted before names were kept is known by the first one alone.
UPDATE session_witness SET taints = ARRAY[tainted_by] WHERE tainted_by IS NOT NULL;

ALTER TABLE approval ADD COLUMN tainted_by text[] NOT NULL DEFAULT '{}';
