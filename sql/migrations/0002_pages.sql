-- What is known of each page of a list that a source walks, committed with the page's batch: a walk that
-- died goes on where it stood, a rotation takes the pages that were fetched longest ago, and an upstream that
-- still has what we read last need not send it again.
CREATE TABLE pages (
    source text NOT NULL,
    number integer NOT NULL,
    -- When the walk began that fetched the page last, and what that walk still had to fetch after it.
    walk timestamptz NOT NULL,
    ahead integer[] NOT NULL,
    fetched_at timestamptz NOT NULL,
    -- When it was last sent in full; where fetched_at is later, the upstream said that nothing had changed.
    read_at timestamptz NOT NULL,
    records integer NOT NULL,
    -- Whether the list ends with this page.
    last boolean NOT NULL,
    -- What the upstream would know the page by, and the request and way of reading for which that is good.
    etag text,
    last_modified text,
    reading text NOT NULL,
    PRIMARY KEY (source, number)
);

COMMENT ON TABLE pages IS 'Each page of an API''s list: when it was fetched, and what its walk had ahead';

-- What a person should know of a source's pass that is no error: which pages it fetched, and why those.
ALTER TABLE run_sources ADD COLUMN note text;

-- Whether the pass failed because the upstream gave nothing to use: after several of them in a row it is
-- asked with one call a pass, by whatever process.
ALTER TABLE run_sources ADD COLUMN dead boolean NOT NULL DEFAULT false;
