-- How far each schedule has been fired, and which balancer fires it now. Seconds and milliseconds since 1970. Not
-- part of the feed.
CREATE TABLE schedules (
    trigger_id TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    tick_second BIGINT,
    claimed_by TEXT COLLATE "C" NOT NULL,
    claimed_until BIGINT NOT NULL
);
