-- Who used a join token: the same request may be answered again, if its answer was lost.
ALTER TABLE join_tokens ADD COLUMN used_by TEXT;

-- Nodes that may not come back under this name, whatever certificate they show.
CREATE TABLE removed_nodes (
    name VARCHAR(255) NOT NULL PRIMARY KEY,
    removed_at BIGINT NOT NULL
) WITHOUT ROWID;
