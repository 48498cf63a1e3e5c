-- What balancers that share the database tell each other beside the catalog. Not part of the feed.

-- Join tokens that let a node in. Kept until long after they expire: each lets in one node.
CREATE TABLE join_tokens (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
) WITHOUT ROWID;

-- Where agents reach the balancers' links.
CREATE TABLE balancers (
    name VARCHAR(255) NOT NULL PRIMARY KEY,
    link_address VARCHAR(255) NOT NULL,
    seen_at BIGINT NOT NULL
) WITHOUT ROWID;
