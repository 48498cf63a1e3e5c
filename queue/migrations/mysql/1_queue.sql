-- Messages. state: 0 waits, 1 runs, 2 done, 3 dead, 4 cancelled. Times are milliseconds since 1970, pauses milliseconds.
CREATE TABLE queue_messages (
    seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
    id CHAR(26) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    function_id CHAR(26) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    app_id CHAR(26) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
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
    worker VARCHAR(256),
    last_error TEXT,
    payload_bytes BIGINT NOT NULL,
    -- Bytes: neither case nor trailing blanks are ignored.
    idempotency_key VARBINARY(256),
    -- Which statement inserted it.
    batch BIGINT NOT NULL,
    UNIQUE KEY queue_messages_id (id),
    UNIQUE KEY queue_messages_key (function_id, idempotency_key),
    KEY queue_messages_waiting (state, priority, function_id, due_at, seq),
    KEY queue_messages_due (state, due_at),
    KEY queue_messages_deadline (state, deadline_at),
    KEY queue_messages_leased (state, leased_until),
    KEY queue_messages_function (state, function_id, seq),
    KEY queue_messages_ended (state, ended_at),
    KEY queue_messages_listed (function_id, seq)
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Apart from the messages, whose rows change several times.
CREATE TABLE queue_bodies (
    seq BIGINT NOT NULL PRIMARY KEY,
    envelope MEDIUMTEXT NOT NULL,
    payload LONGBLOB NOT NULL
) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
