-- How a call came to its node, and where its time went: JSON of `kiln_shared::story::Story`; absent if nothing is told.
ALTER TABLE calls ADD COLUMN story TEXT;
