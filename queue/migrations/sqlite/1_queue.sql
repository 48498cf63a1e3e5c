-- Messages. state: 0 waits, 1 runs, 2 done, 3 dead, 4 cancelled. Times are milliseconds since 1970, pauses milliseconds.
CREATE TABLE queue_messages (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    function_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    deadline_at INTEGER,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    leased_until INTEGER,
    ended_at INTEGER,
    lease INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    attempts_max INTEGER NOT NULL,
    pause_min INTEGER NOT NULL,
    pause_max INTEGER NOT NULL,
    jitter INTEGER NOT NULL,
    worker TEXT,
    last_error TEXT,
    payload_bytes INTEGER NOT NULL,
    idempotency_key TEXT
);
CREATE UNIQUE INDEX queue_messages_key ON queue_messages (function_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Each holds only the messages that it is for, so that a message is in few of them at a time.
CREATE INDEX queue_messages_waiting ON queue_messages (priority, function_id, due_at, seq) WHERE state = 0;
CREATE INDEX queue_messages_due ON queue_messages (due_at) WHERE state = 0;
CREATE INDEX queue_messages_deadline ON queue_messages (deadline_at) WHERE state = 0 AND deadline_at IS NOT NULL;
CREATE INDEX queue_messages_leased ON queue_messages (leased_until) WHERE state = 1;
CREATE INDEX queue_messages_dead ON queue_messages (function_id, seq) WHERE state = 3;
-- For lists by function, those that ended long ago among them; written once for each message.
CREATE INDEX queue_messages_function ON queue_messages (function_id);
CREATE INDEX queue_messages_ended ON queue_messages (state, ended_at) WHERE state >= 2;

-- Apart from the messages, whose rows are rewritten with every change.
CREATE TABLE queue_bodies (
    seq INTEGER PRIMARY KEY,
    envelope TEXT NOT NULL,
    payload BLOB NOT NULL
);
