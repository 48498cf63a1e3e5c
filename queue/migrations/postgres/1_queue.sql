-- Messages. state: 0 waits, 1 runs, 2 done, 3 dead, 4 cancelled. Times are milliseconds since 1970, pauses milliseconds.
CREATE TABLE queue_messages (
    seq BIGSERIAL PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL UNIQUE,
    function_id TEXT COLLATE "C" NOT NULL,
    app_id TEXT NOT NULL,
    priority BIGINT NOT NULL,
    state BIGINT NOT NULL,
    due_at BIGINT NOT NULL,
    deadline_at BIGINT,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    leased_until BIGINT,
    ended_at BIGINT,
    lease BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    attempts_max BIGINT NOT NULL,
    pause_min BIGINT NOT NULL,
    pause_max BIGINT NOT NULL,
    jitter BIGINT NOT NULL,
    worker TEXT,
    last_error TEXT,
    payload_bytes BIGINT NOT NULL,
    idempotency_key TEXT COLLATE "C"
    -- Rows change several times in a short life.
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
CREATE UNIQUE INDEX queue_messages_key ON queue_messages (function_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Each holds only the messages that it is for, so that a message is in few of them at a time.
CREATE INDEX queue_messages_waiting ON queue_messages (priority, function_id, due_at, seq) WHERE state = 0;
CREATE INDEX queue_messages_due ON queue_messages (due_at) WHERE state = 0;
CREATE INDEX queue_messages_deadline ON queue_messages (deadline_at) WHERE state = 0 AND deadline_at IS NOT NULL;
CREATE INDEX queue_messages_leased ON queue_messages (leased_until) WHERE state = 1;
CREATE INDEX queue_messages_dead ON queue_messages (function_id, seq) WHERE state = 3;
-- For lists by function, those that ended long ago among them.
CREATE INDEX queue_messages_function ON queue_messages (function_id, seq);
CREATE INDEX queue_messages_ended ON queue_messages (state, ended_at) WHERE state >= 2;

-- Apart from the messages, whose rows are written anew with every change.
CREATE TABLE queue_bodies (
    seq BIGINT PRIMARY KEY,
    envelope TEXT NOT NULL,
    payload BYTEA NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.02);
