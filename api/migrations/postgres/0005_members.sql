-- Who used a join token: the same request may be answered again, if its answer was lost.
ALTER TABLE join_tokens ADD COLUMN used_by TEXT COLLATE "C";

-- Nodes that may not come back under this name, whatever certificate they show.
CREATE TABLE removed_nodes (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    removed_at BIGINT NOT NULL
);
