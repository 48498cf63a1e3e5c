-- Ended calls and their logs. Call ids sort by time, which makes inserts cheap and retention a range.
-- `status` is 0 success, 1 error, 2 timeout.
CREATE TABLE calls (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    fn_id TEXT COLLATE "C" NOT NULL,
    trigger_id TEXT COLLATE "C",
    status INTEGER NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT NOT NULL,
    cold INTEGER NOT NULL
);

CREATE INDEX calls_by_fn ON calls (fn_id, id);

-- Pieces of a call's log in the order of `part`. `bytes` is the length of `text`.
CREATE TABLE logs (
    call_id TEXT COLLATE "C" NOT NULL,
    part BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (call_id, part)
);
