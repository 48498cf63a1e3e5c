-- Ended calls and their logs. Call ids sort by time, which makes inserts cheap and retention a range.
-- Every call writes a row, so texts are few: the app is the function's, `status` is 0 success, 1 error, 2 timeout.
CREATE TABLE calls (
    id VARCHAR(26) NOT NULL PRIMARY KEY,
    fn_id VARCHAR(26) NOT NULL,
    trigger_id VARCHAR(26),
    status SMALLINT NOT NULL,
    error TEXT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT NOT NULL,
    cold SMALLINT NOT NULL
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
