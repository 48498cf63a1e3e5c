-- Ended calls and their logs. Call ids sort by time, which makes inserts cheap and retention a range.
CREATE TABLE calls (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    fn_id VARCHAR(26) NOT NULL,
    app_id VARCHAR(26) NOT NULL,
    trigger_id VARCHAR(26),
    status VARCHAR(8) NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT NOT NULL,
    cold BOOLEAN NOT NULL
) WITHOUT ROWID;

CREATE INDEX calls_by_fn ON calls (fn_id, id);

-- Pieces of a call's log in the order of `part`. `bytes` is the length of `text`.
CREATE TABLE logs (
    call_id VARCHAR(26) NOT NULL,
    part BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (call_id, part)
) WITHOUT ROWID;
