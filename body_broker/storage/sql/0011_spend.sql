-- What the inference tiers may spend and have spent: reserved before a request, settled after it. Money is in billionths of a US dollar.
-- A day is a UTC day, that of the reservation. `asker` is a principal, or '*' for everybody together: that row is locked first, always,
-- so that two that write at once wait for each other and never in a circle.
CREATE TABLE spend_day (
    day date NOT NULL,
    tier text NOT NULL,
    asker text NOT NULL,
    reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    spent bigint NOT NULL DEFAULT 0 CHECK (spent >= 0),
    requests bigint NOT NULL DEFAULT 0,
    prompt_tokens bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (day, tier, asker)
);

-- A request under way. One that outlives `expires_at` was left by a process that died: its money counts as spent,
-- for it may have been.
CREATE TABLE spend_reservation (
    id text PRIMARY KEY,
    day date NOT NULL,
    tier text NOT NULL,
    asker text NOT NULL CHECK (asker <> '*'),
    engine text NOT NULL,
    amount bigint NOT NULL CHECK (amount >= 0),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);
CREATE INDEX spend_reservation_expiry ON spend_reservation (expires_at);

-- Sets money aside, if both caps have room for it: what is reserved and spent never passes a cap. `granted` says whether it is done, and
-- the rest what is left of each cap afterwards, until the day ends. One round trip, one transaction.
CREATE FUNCTION spend_reserve(
    p_id text, p_tier text, p_asker text, p_engine text, p_amount bigint, p_tier_cap bigint, p_asker_cap bigint,
    p_ttl interval, OUT granted boolean, OUT tier_left bigint, OUT asker_left bigint, OUT day_left interval
) LANGUAGE plpgsql AS $$
DECLARE
    now_utc timestamp := clock_timestamp() AT TIME ZONE 'UTC';
    today date := now_utc::date;
BEGIN
    INSERT INTO spend_day (day, tier, asker) VALUES (today, p_tier, '*'), (today, p_tier, p_asker) ON CONFLICT DO NOTHING;
    SELECT p_tier_cap - reserved - spent INTO tier_left FROM spend_day
    WHERE day = today AND tier = p_tier AND asker = '*' FOR UPDATE;
    SELECT p_asker_cap - reserved - spent INTO asker_left FROM spend_day
    WHERE day = today AND tier = p_tier AND asker = p_asker FOR UPDATE;
    day_left := today + interval '1 day' - now_utc;
    granted := p_amount <= tier_left AND p_amount <= asker_left;
    IF granted THEN
        INSERT INTO spend_reservation (id, day, tier, asker, engine, amount, expires_at)
        VALUES (p_id, today, p_tier, p_asker, p_engine, p_amount, clock_timestamp() + p_ttl);
        UPDATE spend_day SET reserved = reserved + p_amount WHERE day = today AND tier = p_tier AND asker IN ('*', p_asker);
        tier_left := tier_left - p_amount;
        asker_left := asker_left - p_amount;
    END IF;
END $$;

-- Ends a reservation: what it really cost is spent, the rest is free again; NULL spends all of it. Says what was spent, nothing where the
-- reservation was not there any more.
CREATE FUNCTION spend_settle(p_id text, p_spent bigint, p_requests bigint, p_prompt bigint, p_completion bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    kept spend_reservation;
BEGIN
    SELECT * INTO kept FROM spend_reservation WHERE id = p_id;
    PERFORM 1 FROM spend_day WHERE day = kept.day AND tier = kept.tier AND asker = '*' FOR UPDATE;
    DELETE FROM spend_reservation WHERE id = p_id;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    UPDATE spend_day SET reserved = reserved - kept.amount, spent = spent + coalesce(p_spent, kept.amount),
        requests = requests + coalesce(p_requests, 1),
        prompt_tokens = prompt_tokens + p_prompt, completion_tokens = completion_tokens + p_completion
    WHERE day = kept.day AND tier = kept.tier AND asker IN ('*', kept.asker);
    RETURN coalesce(p_spent, kept.amount);
END $$;

-- Counts what cost nothing.
CREATE FUNCTION spend_note(p_tier text, p_asker text, p_requests bigint, p_prompt bigint, p_completion bigint)
RETURNS void LANGUAGE sql AS $$
    INSERT INTO spend_day AS d (day, tier, asker, requests, prompt_tokens, completion_tokens)
    SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date, p_tier, whose, p_requests, p_prompt, p_completion
    FROM unnest(ARRAY['*', p_asker]) AS whose
    ON CONFLICT (day, tier, asker) DO UPDATE SET requests = d.requests + excluded.requests,
        prompt_tokens = d.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = d.completion_tokens + excluded.completion_tokens
$$;

-- Books what the dead left, at most so many reservations; says how many. What single askers took is forgotten after 40 days: sums of tiers
-- are kept.
CREATE FUNCTION spend_sweep(p_most integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    left_behind text;
    booked integer := 0;
BEGIN
    FOR left_behind IN
        SELECT id FROM spend_reservation WHERE expires_at <= clock_timestamp()
        ORDER BY day, tier, asker, id LIMIT p_most  -- two that sweep at once wait in the same order
    LOOP
        IF spend_settle(left_behind, NULL, NULL, 0, 0) IS NOT NULL THEN
            booked := booked + 1;
        END IF;
    END LOOP;
    DELETE FROM spend_day WHERE day < (clock_timestamp() AT TIME ZONE 'UTC')::date - 40 AND asker <> '*' AND reserved = 0;
    RETURN booked;
END $$;
