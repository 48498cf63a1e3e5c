-- What balancers that share the database tell each other beside the catalog. Not part of the feed.

-- Join tokens that let in a node. Kept until long after they expire: each lets in one node.
CREATE TABLE join_tokens (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

-- Where agents reach the balancers' links.
CREATE TABLE balancers (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    link_address TEXT COLLATE "C" NOT NULL,
    seen_at BIGINT NOT NULL
);
