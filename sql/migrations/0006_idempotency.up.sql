-- Retries that are safe (X09): the answer to a request with an Idempotency-Key, written in the transaction of its effect.

CREATE TABLE idempotency_keys (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    account_id  uuid        NOT NULL,
    key         text        NOT NULL,
    request     bytea       NOT NULL,
    status      integer     NOT NULL,
    headers     jsonb       NOT NULL DEFAULT '{}',
    body        bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT idempotency_keys_key_key UNIQUE (org_id, account_id, key),
    CONSTRAINT idempotency_keys_account_id_fkey FOREIGN KEY (org_id, account_id)
        REFERENCES organization_members (org_id, account_id) ON DELETE CASCADE,
    CONSTRAINT idempotency_keys_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT idempotency_keys_key_length_check CHECK (octet_length(key) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_request_length_check CHECK (octet_length(request) = 32),
    CONSTRAINT idempotency_keys_status_check CHECK (status BETWEEN 200 AND 299)
);
COMMENT ON TABLE idempotency_keys IS 'X09: what was answered to requests that named a key, for 24 hours. A refused request leaves no row: it had no effect, and is judged anew.';
COMMENT ON COLUMN idempotency_keys.key IS 'The client''s Idempotency-Key. Each account has its own.';
COMMENT ON COLUMN idempotency_keys.request IS 'SHA-256 of the method, path, query and body: the same key with another request is refused.';
COMMENT ON COLUMN idempotency_keys.headers IS 'The answer''s headers that are the operation''s own.';
COMMENT ON COLUMN idempotency_keys.body IS 'The answer. NULL where it showed a secret: that is not kept.';
COMMENT ON CONSTRAINT idempotency_keys_key_key ON idempotency_keys IS 'X09: of two requests with one key, one commits.';

CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (org_id, created_at);

ALTER TABLE idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency_keys FORCE ROW LEVEL SECURITY;
CREATE POLICY idempotency_keys_tenant ON idempotency_keys TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY idempotency_keys_limited ON idempotency_keys AS RESTRICTIVE TO hub_app USING (account_id = (SELECT current_account_id()));
COMMENT ON POLICY idempotency_keys_limited ON idempotency_keys IS 'An answer is for who got it.';
CREATE POLICY idempotency_keys_purge ON idempotency_keys TO hub_system USING (true);
GRANT SELECT, DELETE ON idempotency_keys TO hub_app;
GRANT INSERT (org_id, account_id, key, request, status, headers, body) ON idempotency_keys TO hub_app;
GRANT SELECT, DELETE ON idempotency_keys TO hub_system;

CREATE FUNCTION claim_idempotency_key(p_key text, OUT claimed boolean, OUT id uuid, OUT request bytea, OUT status integer, OUT headers jsonb, OUT body bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    claimed := pg_try_advisory_xact_lock(hashtextextended(concat_ws(' ', current_org_id(), current_account_id(), p_key), 0));
    -- A statement of its own, whose snapshot is younger than the lock: it sees the answer of whoever held the lock before.
    SELECT k.id, k.request, k.status, k.headers, k.body INTO id, request, status, headers, body
    FROM idempotency_keys k
    WHERE k.org_id = current_org_id() AND k.account_id = current_account_id() AND k.key = p_key AND k.created_at > now() - interval '24 hours';
END $$;
COMMENT ON FUNCTION claim_idempotency_key(text) IS
    'X09: takes the key for this transaction, and finds the answer that was given to it. Neither: another request with the key is under way.';

CREATE FUNCTION purge_idempotency_keys(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM idempotency_keys k
    WHERE (k.org_id, k.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT i.org_id, i.id FROM idempotency_keys i WHERE i.org_id = o.id AND i.created_at < now() - interval '24 hours' LIMIT p_rows) d
        LIMIT p_rows);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION purge_idempotency_keys(integer) IS 'X09: removes up to so many answers that are older than 24 hours. Returns how many.';
REVOKE ALL ON FUNCTION purge_idempotency_keys(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION purge_idempotency_keys(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION purge_idempotency_keys(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
