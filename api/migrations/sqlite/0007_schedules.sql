-- How far each schedule has been fired, and which balancer fires it now. Seconds and milliseconds since 1970. Not
-- part of the feed.
CREATE TABLE schedules (
    trigger_id VARCHAR(26) NOT NULL PRIMARY KEY REFERENCES triggers (id) ON DELETE CASCADE,
    tick_second BIGINT,
    claimed_by VARCHAR(320) NOT NULL,
    claimed_until BIGINT NOT NULL
) WITHOUT ROWID;
