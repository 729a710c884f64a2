-- Spokes and the operations that they offer (C03, W04, W06): programs that connect to the hub to do work for others.


-- What is looked up ----------------------------------------------------------------------------------------------

CREATE TABLE spoke_statuses (
    status      text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT spoke_statuses_pkey PRIMARY KEY (status)
);
COMMENT ON TABLE spoke_statuses IS 'W06: how a spoke''s connection is.';
INSERT INTO spoke_statuses (status, description) VALUES
    ('connected',    'It sends heartbeats, and gets calls.'),
    ('reconnecting', 'Its lease ran out. Its operations and calls are kept for a grace period; it gets no new calls.'),
    ('disconnected', 'It is gone, and its operations with it. It can register again.');

CREATE TABLE spoke_status_transitions (
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT spoke_status_transitions_pkey PRIMARY KEY (from_status, to_status),
    CONSTRAINT spoke_status_transitions_from_status_fkey FOREIGN KEY (from_status) REFERENCES spoke_statuses (status) ON DELETE RESTRICT,
    CONSTRAINT spoke_status_transitions_to_status_fkey FOREIGN KEY (to_status) REFERENCES spoke_statuses (status) ON DELETE RESTRICT
);
COMMENT ON TABLE spoke_status_transitions IS 'X06, W06: which status of a spoke may follow which.';
INSERT INTO spoke_status_transitions (from_status, to_status) VALUES
    ('connected', 'reconnecting'), ('connected', 'disconnected'), ('reconnecting', 'connected'), ('reconnecting', 'disconnected'),
    ('disconnected', 'connected'); -- as another connection: see spokes_epoch_rises

CREATE TABLE reserved_namespaces (
    namespace  text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT reserved_namespaces_pkey PRIMARY KEY (namespace)
);
COMMENT ON TABLE reserved_namespaces IS 'W04: namespaces of the hub''s own operations, which no spoke offers.';
INSERT INTO reserved_namespaces (namespace) VALUES ('hub');


-- Spokes ---------------------------------------------------------------------------------------------------------

CREATE TABLE spokes (
    org_id           uuid        NOT NULL,
    id               uuid        NOT NULL DEFAULT hub_uuidv7(),
    name             text        NOT NULL,
    account_id       uuid,
    status           text        NOT NULL DEFAULT 'connected',
    epoch            integer     NOT NULL DEFAULT 1,
    version          text        NOT NULL DEFAULT '',
    lease_seconds    integer     NOT NULL DEFAULT 30,
    grace_seconds    integer     NOT NULL DEFAULT 60,
    lease_expires_at timestamptz NOT NULL,
    take_expires_at  timestamptz,
    connected_at     timestamptz NOT NULL DEFAULT now(),
    disconnected_at  timestamptz,
    data             jsonb       NOT NULL DEFAULT '{}',
    metadata         jsonb       NOT NULL DEFAULT '{}',
    revision         integer     NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT spokes_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT spokes_name_key UNIQUE (org_id, name),
    CONSTRAINT spokes_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE RESTRICT,
    CONSTRAINT spokes_account_id_fkey FOREIGN KEY (org_id, account_id) REFERENCES organization_members (org_id, account_id) ON DELETE SET NULL (account_id),
    CONSTRAINT spokes_status_fkey FOREIGN KEY (status) REFERENCES spoke_statuses (status) ON DELETE RESTRICT,
    CONSTRAINT spokes_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT spokes_name_shape_check CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._-]*$' AND char_length(name) <= 100),
    CONSTRAINT spokes_version_length_check CHECK (char_length(version) <= 100),
    CONSTRAINT spokes_epoch_check CHECK (epoch >= 1),
    CONSTRAINT spokes_lease_seconds_check CHECK (lease_seconds BETWEEN 1 AND 3600),
    CONSTRAINT spokes_grace_seconds_check CHECK (grace_seconds BETWEEN 0 AND 86400),
    CONSTRAINT spokes_disconnected_has_time_check CHECK ((status = 'disconnected') = (disconnected_at IS NOT NULL)),
    CONSTRAINT spokes_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT spokes_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE spokes IS 'Programs that do work for others: each offers operations and takes calls of them.';
COMMENT ON COLUMN spokes.name IS 'Unique in the organisation. Who registers it again is the same spoke, on a new connection.';
COMMENT ON COLUMN spokes.account_id IS 'Whose key connected it: only that account, and admins, speak for it. NULL once the account has left.';
COMMENT ON COLUMN spokes.epoch IS 'W06: counts its connections. Whoever speaks with an older one is refused.';
COMMENT ON COLUMN spokes.version IS 'The program''s.';
COMMENT ON COLUMN spokes.lease_seconds IS 'For how long a heartbeat, or a take, says that it lives.';
COMMENT ON COLUMN spokes.grace_seconds IS 'W06: how long it may then be reconnecting.';
COMMENT ON COLUMN spokes.take_expires_at IS 'W06: until when its newest take waits for calls. Ready means connected, and a take that is open.';
COMMENT ON COLUMN spokes.connected_at IS 'When the present connection, or the last one, began.';
COMMENT ON COLUMN spokes.data IS 'W01: what the program says of itself.';
COMMENT ON COLUMN spokes.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN spokes.revision IS 'Counts changes of everything but the lease: the ETag.';
COMMENT ON CONSTRAINT spokes_org_id_fkey ON spokes IS 'W12. Indexed by spokes_name_key (W03).';
COMMENT ON CONSTRAINT spokes_account_id_fkey ON spokes IS 'C01';
COMMENT ON CONSTRAINT spokes_status_fkey ON spokes IS 'W06';
COMMENT ON CONSTRAINT spokes_id_version_check ON spokes IS 'C02';
COMMENT ON CONSTRAINT spokes_metadata_check ON spokes IS 'W01';

CREATE INDEX spokes_account_id_idx ON spokes (org_id, account_id);
CREATE INDEX spokes_status_idx ON spokes (org_id, status, name);
CREATE INDEX spokes_lease_idx ON spokes (org_id, lease_expires_at) WHERE status <> 'disconnected';
COMMENT ON INDEX spokes_lease_idx IS 'W06: what the sweeper looks for.';

CREATE FUNCTION check_spoke_account() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF public.current_account_id() IS NOT NULL AND OLD.account_id IS DISTINCT FROM public.current_account_id()
       AND public.current_membership_rank() < 2 AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule(TG_NAME, 'A spoke is its account''s: nobody else speaks for it, but admins.', '42501');
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;
COMMENT ON FUNCTION check_spoke_account() IS 'W06: who took a spoke''s name would get its calls.';
CREATE TRIGGER spokes_by_their_account BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN (NEW.account_id IS NOT NULL OR OLD.account_id IS NULL) EXECUTE FUNCTION check_spoke_account();
COMMENT ON TRIGGER spokes_by_their_account ON spokes IS 'W06. Not where SET NULL takes an account away.';

CREATE FUNCTION check_spoke_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM spoke_status_transitions t WHERE (t.from_status, t.to_status) = (OLD.status, NEW.status)) THEN
        PERFORM raise_rule(TG_NAME, format('A spoke that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_spoke_status() IS 'X06, W06: the steps are rows of spoke_status_transitions.';
-- A status that there is not is the foreign key's to refuse.
CREATE TRIGGER spokes_status_transition BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('connected', 'reconnecting', 'disconnected')) EXECUTE FUNCTION check_spoke_status();
COMMENT ON TRIGGER spokes_status_transition ON spokes IS 'X06, W06';

CREATE TRIGGER spokes_epoch_rises BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN (NEW.epoch < OLD.epoch OR NEW.epoch = OLD.epoch AND OLD.status = 'disconnected' AND NEW.status = 'connected')
    EXECUTE FUNCTION refuse_change('An epoch, but for a higher one,');
COMMENT ON TRIGGER spokes_epoch_rises ON spokes IS 'W06: a connection that has ended does not come back: the spoke registers again.';

CREATE TRIGGER spokes_identity_immutable BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.name, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.name, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A spoke''s organisation, id, name and creation time');
CREATE TRIGGER spokes_touch BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN ((OLD.account_id, OLD.status, OLD.epoch, OLD.version, OLD.lease_seconds, OLD.grace_seconds, OLD.connected_at, OLD.disconnected_at,
                        OLD.data::text, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.account_id, NEW.status, NEW.epoch, NEW.version, NEW.lease_seconds, NEW.grace_seconds, NEW.connected_at, NEW.disconnected_at,
                        NEW.data::text, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER spokes_use BEFORE UPDATE ON spokes
    FOR EACH ROW WHEN ((OLD.lease_expires_at, OLD.take_expires_at) IS DISTINCT FROM (NEW.lease_expires_at, NEW.take_expires_at)) EXECUTE FUNCTION set_updated_at();
COMMENT ON TRIGGER spokes_use ON spokes IS 'W22: a heartbeat moves updated_at, but is no new revision.';

CREATE TRIGGER spokes_record AFTER INSERT OR DELETE ON spokes FOR EACH ROW EXECUTE FUNCTION record_row_event('spoke');
CREATE TRIGGER spokes_record_change AFTER UPDATE ON spokes
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('spoke');

CREATE FUNCTION hold_spoke(p_spoke_id uuid, p_epoch integer) RETURNS SETOF spokes
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_spoke spokes;
BEGIN
    SELECT * INTO v_spoke FROM spokes s WHERE s.org_id = current_org_id() AND s.id = p_spoke_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_spoke.account_id IS DISTINCT FROM current_account_id() AND current_membership_rank() < 2 AND NOT is_platform_admin() THEN
        PERFORM raise_rule('spoke_of_another_account', 'A spoke is its account''s: nobody else speaks for it, but admins.', '42501');
    END IF;
    IF v_spoke.epoch <> p_epoch OR v_spoke.status = 'disconnected' THEN
        PERFORM raise_rule('spoke_epoch_stale', format('This connection has ended: the spoke''s epoch is %s, and it is %s.', v_spoke.epoch, v_spoke.status));
    END IF;
    RETURN NEXT v_spoke;
END $$;
COMMENT ON FUNCTION hold_spoke(uuid, integer) IS 'W06: the spoke, locked, where this connection is its present one and the caller speaks for it; else a refusal. No row where there is no such spoke. What follows in the transaction is fenced.';


-- Operation specs ------------------------------------------------------------------------------------------------

CREATE FUNCTION are_scopes(p_scopes text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN cardinality(p_scopes) <= 50 AND array_position(p_scopes, NULL) IS NULL
    AND cardinality(string_to_array(array_to_string(p_scopes, ' '), ' ')) = cardinality(p_scopes)
    AND array_to_string(p_scopes, ' ') ~ '^((?!platform:)[a-z]+:(read|write|admin)( (?!$)|$))*$';
COMMENT ON FUNCTION are_scopes(text[]) IS 'Up to 50 scopes of the organisation: noun:read, noun:write, noun:admin.';

CREATE FUNCTION are_redact_paths(p_paths text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN cardinality(p_paths) <= 100 AND array_position(p_paths, NULL) IS NULL
    AND cardinality(string_to_array(array_to_string(p_paths, E'\n'), E'\n')) = cardinality(p_paths)
    AND array_to_string(p_paths, E'\n') ~ '^(/[^\n]*(\n(?!$)|$))*$' AND octet_length(array_to_string(p_paths, '')) <= 50000;
COMMENT ON FUNCTION are_redact_paths(text[]) IS 'Up to 100 JSON pointers (RFC 6901); the segment * stands for every member and element.';

CREATE TABLE operation_specs (
    org_id         uuid        NOT NULL,
    id             uuid        NOT NULL DEFAULT hub_uuidv7(),
    spoke_id       uuid        NOT NULL,
    namespace      text        NOT NULL,
    name           text        NOT NULL,
    qualified_name text        NOT NULL GENERATED ALWAYS AS (namespace || '.' || spoke_id::text || '.' || name) STORED,
    kind           text        NOT NULL,
    version        text        NOT NULL DEFAULT '1',
    title          text        NOT NULL DEFAULT '',
    description    text        NOT NULL DEFAULT '',
    input_schema   jsonb       NOT NULL DEFAULT '{"type": "object"}',
    output_schema  jsonb,
    error_schema   jsonb,
    scopes_all     text[]      NOT NULL DEFAULT '{}',
    scopes_any     text[]      NOT NULL DEFAULT '{}',
    redact_paths   text[]      NOT NULL DEFAULT '{}',
    payload_limit  integer,
    max_attempts   integer     NOT NULL DEFAULT 1,
    visibility     text        NOT NULL DEFAULT 'organization',
    annotations    jsonb       NOT NULL DEFAULT '{}',
    metadata       jsonb       NOT NULL DEFAULT '{}',
    revision       integer     NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT operation_specs_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT operation_specs_qualified_name_key UNIQUE (org_id, qualified_name),
    CONSTRAINT operation_specs_spoke_id_name_key UNIQUE (org_id, spoke_id, namespace, name),
    CONSTRAINT operation_specs_spoke_id_fkey FOREIGN KEY (org_id, spoke_id) REFERENCES spokes (org_id, id) ON DELETE CASCADE,
    CONSTRAINT operation_specs_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT operation_specs_namespace_shape_check CHECK (namespace ~ '^[A-Za-z0-9_-]{1,40}$'),
    CONSTRAINT operation_specs_name_shape_check CHECK (name ~ '^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$' AND name !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}([.]|$)'),
    CONSTRAINT operation_specs_qualified_name_length_check CHECK (char_length(qualified_name) <= 128),
    CONSTRAINT operation_specs_kind_check CHECK (kind IN ('query', 'mutation', 'subscription')),
    CONSTRAINT operation_specs_version_length_check CHECK (char_length(version) BETWEEN 1 AND 100),
    CONSTRAINT operation_specs_title_length_check CHECK (char_length(title) <= 200),
    CONSTRAINT operation_specs_description_length_check CHECK (char_length(description) <= 10000),
    CONSTRAINT operation_specs_input_schema_object_check CHECK (jsonb_typeof(input_schema) = 'object'),
    CONSTRAINT operation_specs_output_schema_object_check CHECK (jsonb_typeof(output_schema) = 'object'),
    CONSTRAINT operation_specs_error_schema_object_check CHECK (jsonb_typeof(error_schema) = 'object'),
    CONSTRAINT operation_specs_scopes_all_shape_check CHECK (are_scopes(scopes_all)),
    CONSTRAINT operation_specs_scopes_any_shape_check CHECK (are_scopes(scopes_any)),
    CONSTRAINT operation_specs_redact_paths_shape_check CHECK (are_redact_paths(redact_paths)),
    CONSTRAINT operation_specs_payload_limit_check CHECK (payload_limit BETWEEN 0 AND 1048576),
    CONSTRAINT operation_specs_max_attempts_check CHECK (max_attempts BETWEEN 1 AND 10),
    CONSTRAINT operation_specs_visibility_check CHECK (visibility IN ('organization', 'account')),
    CONSTRAINT operation_specs_annotations_object_check CHECK (jsonb_typeof(annotations) = 'object'),
    CONSTRAINT operation_specs_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE operation_specs IS 'What connected spokes offer. C03: gone with the connection; calls keep what they need of it.';
COMMENT ON COLUMN operation_specs.namespace IS 'W04: the spoke''s own, one segment.';
COMMENT ON COLUMN operation_specs.name IS 'W04: the spoke''s own. Dots are welcome; it does not begin with what looks like a spoke''s id.';
COMMENT ON COLUMN operation_specs.qualified_name IS 'W04: namespace.{spoke id}.name: this spoke''s, whoever else offers namespace.name.';
COMMENT ON COLUMN operation_specs.input_schema IS 'JSON Schema (2020-12) of a call''s input. Strings are escaped (X07).';
COMMENT ON COLUMN operation_specs.output_schema IS 'JSON Schema of the output; NULL for none. Strings are escaped (X07).';
COMMENT ON COLUMN operation_specs.error_schema IS 'JSON Schema of an error''s details; NULL for none. Strings are escaped (X07).';
COMMENT ON COLUMN operation_specs.scopes_all IS 'Scopes that a caller''s key must all cover.';
COMMENT ON COLUMN operation_specs.scopes_any IS 'Scopes of which a caller''s key must cover one, where there are any.';
COMMENT ON COLUMN operation_specs.redact_paths IS 'W08: JSON pointers into input, output, error and metadata whose values are not written down.';
COMMENT ON COLUMN operation_specs.payload_limit IS 'W18: bytes of a payload that are written down; NULL for the organisation''s limit.';
COMMENT ON COLUMN operation_specs.max_attempts IS 'How often a call may be started: above 1, it is given to somebody else when its spoke dies.';
COMMENT ON COLUMN operation_specs.visibility IS 'organization: everybody in it; account: the spoke''s account, and admins.';
COMMENT ON COLUMN operation_specs.annotations IS 'MCP''s tool annotations: readOnlyHint, destructiveHint, idempotentHint, openWorldHint.';
COMMENT ON COLUMN operation_specs.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN operation_specs.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT operation_specs_qualified_name_key ON operation_specs IS 'W04';
COMMENT ON CONSTRAINT operation_specs_qualified_name_length_check ON operation_specs IS 'W04: MCP''s rule for the names of tools.';
COMMENT ON CONSTRAINT operation_specs_id_version_check ON operation_specs IS 'C02';
COMMENT ON CONSTRAINT operation_specs_metadata_check ON operation_specs IS 'W01';

CREATE INDEX operation_specs_namespace_name_idx ON operation_specs (org_id, namespace, name);

CREATE FUNCTION check_operation_namespace() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM reserved_namespaces r WHERE r.namespace = lower(NEW.namespace)) THEN
        PERFORM raise_rule(TG_NAME, format('The namespace %s is the hub''s own.', NEW.namespace));
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_operation_namespace() IS 'W04: namespaces of the hub''s own operations are reserved, in any spelling.';
CREATE TRIGGER operation_specs_namespace_free BEFORE INSERT OR UPDATE OF namespace ON operation_specs
    FOR EACH ROW EXECUTE FUNCTION check_operation_namespace();
COMMENT ON TRIGGER operation_specs_namespace_free ON operation_specs IS 'W04';

CREATE FUNCTION check_operation_spoke() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_status text;
BEGIN
    -- With a lock: whoever disconnects the spoke waits, and then finds this operation.
    SELECT s.status INTO v_status FROM spokes s WHERE (s.org_id, s.id) = (NEW.org_id, NEW.spoke_id) FOR SHARE;
    IF v_status = 'disconnected' THEN
        PERFORM raise_rule(TG_NAME, 'A spoke that is disconnected offers nothing.');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_operation_spoke() IS 'C03: there are no operations of disconnected spokes, whoever writes them.';
CREATE TRIGGER operation_specs_spoke_connected BEFORE INSERT ON operation_specs
    FOR EACH ROW EXECUTE FUNCTION check_operation_spoke();
COMMENT ON TRIGGER operation_specs_spoke_connected ON operation_specs IS 'C03';

CREATE TRIGGER operation_specs_identity_immutable BEFORE UPDATE ON operation_specs
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.spoke_id, OLD.namespace, OLD.name, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.spoke_id, NEW.namespace, NEW.name, NEW.created_at))
    EXECUTE FUNCTION refuse_change('An operation''s organisation, id, spoke, names and creation time');
CREATE TRIGGER operation_specs_touch BEFORE UPDATE ON operation_specs
    FOR EACH ROW WHEN ((OLD.kind, OLD.version, OLD.title, OLD.description, OLD.input_schema::text, OLD.output_schema::text, OLD.error_schema::text, OLD.scopes_all, OLD.scopes_any, OLD.redact_paths, OLD.payload_limit, OLD.max_attempts, OLD.visibility, OLD.annotations::text, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.kind, NEW.version, NEW.title, NEW.description, NEW.input_schema::text, NEW.output_schema::text, NEW.error_schema::text, NEW.scopes_all, NEW.scopes_any, NEW.redact_paths, NEW.payload_limit, NEW.max_attempts, NEW.visibility, NEW.annotations::text, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();

CREATE FUNCTION withdraw_operations() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    DELETE FROM operation_specs o WHERE (o.org_id, o.spoke_id) = (NEW.org_id, NEW.id);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION withdraw_operations() IS 'C03: what a spoke offered goes in the transaction that disconnects it.';
CREATE TRIGGER spokes_operations_withdrawn AFTER UPDATE ON spokes
    FOR EACH ROW WHEN (NEW.status = 'disconnected' AND OLD.status <> 'disconnected') EXECUTE FUNCTION withdraw_operations();
COMMENT ON TRIGGER spokes_operations_withdrawn ON spokes IS 'C03';


CREATE FUNCTION put_operations(p_spoke_id uuid, p_epoch integer, p_operations jsonb, OUT qualified_name text, OUT change text) RETURNS SETOF record
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    WITH held AS (
        SELECT h.org_id, h.id FROM hold_spoke(p_spoke_id, p_epoch) h
    ), offered AS (
        SELECT h.org_id, h.id AS spoke_id, o.namespace, o.name, o.kind, o.version, o.title, o.description, o.input_schema, o.output_schema, o.error_schema, o.scopes_all, o.scopes_any, o.redact_paths, o.payload_limit, o.max_attempts, o.visibility, o.annotations, o.metadata
        FROM held h, jsonb_to_recordset(p_operations) AS o(
            namespace text, name text, kind text, version text, title text, description text, input_schema jsonb, output_schema jsonb, error_schema jsonb,
            scopes_all text[], scopes_any text[], redact_paths text[], payload_limit integer, max_attempts integer, visibility text, annotations jsonb, metadata jsonb)
    ), removed AS (
        DELETE FROM operation_specs s USING held h
        WHERE s.org_id = current_org_id() AND s.spoke_id = h.id AND NOT EXISTS (SELECT FROM offered o WHERE (o.namespace, o.name) = (s.namespace, s.name))
        RETURNING s.qualified_name
    ), put AS (
        INSERT INTO operation_specs AS s (org_id, spoke_id, namespace, name, kind, version, title, description, input_schema, output_schema, error_schema, scopes_all, scopes_any,
                                          redact_paths, payload_limit, max_attempts, visibility, annotations, metadata)
        SELECT o.org_id, o.spoke_id, o.namespace, o.name, o.kind, o.version, o.title, o.description, o.input_schema, nullif(o.output_schema, 'null'), nullif(o.error_schema, 'null'),
               o.scopes_all, o.scopes_any, o.redact_paths, o.payload_limit, o.max_attempts, o.visibility, o.annotations, o.metadata
        FROM offered o ORDER BY o.namespace, o.name
        ON CONFLICT (org_id, spoke_id, namespace, name) DO UPDATE SET
            kind = excluded.kind, version = excluded.version, title = excluded.title, description = excluded.description, input_schema = excluded.input_schema,
            output_schema = excluded.output_schema, error_schema = excluded.error_schema, scopes_all = excluded.scopes_all, scopes_any = excluded.scopes_any,
            redact_paths = excluded.redact_paths, payload_limit = excluded.payload_limit, max_attempts = excluded.max_attempts, visibility = excluded.visibility,
            annotations = excluded.annotations, metadata = excluded.metadata
        WHERE (s.kind, s.version, s.title, s.description, s.input_schema::text, s.output_schema::text, s.error_schema::text, s.scopes_all, s.scopes_any,
               s.redact_paths, s.payload_limit, s.max_attempts, s.visibility, s.annotations::text, s.metadata::text)
            IS DISTINCT FROM (excluded.kind, excluded.version, excluded.title, excluded.description, excluded.input_schema::text, excluded.output_schema::text, excluded.error_schema::text,
               excluded.scopes_all, excluded.scopes_any, excluded.redact_paths, excluded.payload_limit, excluded.max_attempts, excluded.visibility, excluded.annotations::text, excluded.metadata::text)
        RETURNING s.namespace, s.name, s.qualified_name, (xmax = 0) AS created
    )
    SELECT r.qualified_name, 'removed'::text AS change FROM removed r
    UNION ALL
    SELECT coalesce(p.qualified_name, o.namespace || '.' || o.spoke_id::text || '.' || o.name), CASE p.created WHEN true THEN 'created' WHEN false THEN 'updated' ELSE 'unchanged' END
    FROM offered o LEFT JOIN put p ON (p.namespace, p.name) = (o.namespace, o.name)
    ORDER BY 1
$$;
COMMENT ON FUNCTION put_operations(uuid, integer, jsonb) IS 'What a spoke offers, as a JSON array of objects with the names of the columns: the whole set. What is not in it goes, what is the same is not touched; the rows say what changed.';


-- Sessions that run there (W20) -----------------------------------------------------------------------------------

ALTER TABLE mappings ADD CONSTRAINT mappings_spoke_id_fkey FOREIGN KEY (org_id, spoke_id) REFERENCES spokes (org_id, id) ON DELETE SET NULL (spoke_id);
COMMENT ON CONSTRAINT mappings_spoke_id_fkey ON mappings IS 'C14';

CREATE FUNCTION end_placements() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    UPDATE mappings m SET status = 'aborted', reason = 'The spoke disconnected.'
    WHERE m.org_id = NEW.org_id AND m.spoke_id = NEW.id AND m.status = 'active';
    RETURN NULL;
END $$;
COMMENT ON FUNCTION end_placements() IS 'W20: nothing runs on a spoke that is gone for good, and its sessions are free to be placed elsewhere.';
CREATE TRIGGER spokes_placements_ended AFTER UPDATE ON spokes
    FOR EACH ROW WHEN (NEW.status = 'disconnected' AND OLD.status <> 'disconnected') EXECUTE FUNCTION end_placements();
COMMENT ON TRIGGER spokes_placements_ended ON spokes IS 'W20';


-- Sweeping -------------------------------------------------------------------------------------------------------

CREATE FUNCTION sweep_spokes(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
    v_total bigint := 0;
BEGIN
    UPDATE spokes s SET status = 'disconnected', disconnected_at = now(), take_expires_at = NULL
    WHERE (s.org_id, s.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT w.org_id, w.id FROM spokes w
            WHERE w.org_id = o.id AND w.status <> 'disconnected' AND w.lease_expires_at < now() AND w.status = 'reconnecting'
              AND w.lease_expires_at + make_interval(secs => w.grace_seconds) < now()
            ORDER BY w.lease_expires_at LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED) d
        LIMIT p_rows);
    GET DIAGNOSTICS v_total = ROW_COUNT;
    UPDATE spokes s SET status = 'reconnecting', take_expires_at = NULL
    WHERE (s.org_id, s.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT w.org_id, w.id FROM spokes w
            WHERE w.org_id = o.id AND w.status <> 'disconnected' AND w.lease_expires_at < now() AND w.status = 'connected'
            ORDER BY w.lease_expires_at LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED) d
        LIMIT p_rows);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_total + v_count;
END $$;
COMMENT ON FUNCTION sweep_spokes(integer) IS 'W06: spokes whose lease ran out are reconnecting, those whose grace period is spent disconnected. Returns how many; several servers may sweep at once.';


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE spokes ENABLE ROW LEVEL SECURITY;
ALTER TABLE spokes FORCE ROW LEVEL SECURITY;
ALTER TABLE operation_specs ENABLE ROW LEVEL SECURITY;
ALTER TABLE operation_specs FORCE ROW LEVEL SECURITY;

CREATE POLICY spokes_tenant ON spokes TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY operation_specs_tenant ON operation_specs TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY operation_specs_limited ON operation_specs AS RESTRICTIVE TO hub_app
    USING (CASE WHEN visibility = 'organization' OR (SELECT current_membership_rank()) >= 2 OR (SELECT is_platform_admin()) THEN true
           ELSE EXISTS (SELECT FROM spokes s WHERE (s.org_id, s.id) = (operation_specs.org_id, operation_specs.spoke_id) AND s.account_id = (SELECT current_account_id())) END);
COMMENT ON POLICY operation_specs_limited ON operation_specs IS 'What visibility says.';
CREATE POLICY spokes_sweeping ON spokes TO hub_system USING (true);
CREATE POLICY operation_specs_sweeping ON operation_specs TO hub_system USING (true);

GRANT SELECT ON spoke_statuses, spoke_status_transitions, reserved_namespaces TO hub_app, hub_system;
GRANT SELECT ON spokes TO hub_app;
GRANT INSERT (org_id, name, account_id, version, lease_seconds, grace_seconds, lease_expires_at, data, metadata),
      UPDATE (account_id, status, epoch, version, lease_seconds, grace_seconds, lease_expires_at, take_expires_at, connected_at, disconnected_at, data, metadata) ON spokes TO hub_app;
GRANT SELECT, DELETE ON operation_specs TO hub_app;
GRANT INSERT (org_id, spoke_id, namespace, name, kind, version, title, description, input_schema, output_schema, error_schema, scopes_all, scopes_any,
              redact_paths, payload_limit, max_attempts, visibility, annotations, metadata),
      UPDATE (kind, version, title, description, input_schema, output_schema, error_schema, scopes_all, scopes_any,
              redact_paths, payload_limit, max_attempts, visibility, annotations, metadata) ON operation_specs TO hub_app;
GRANT SELECT, DELETE, UPDATE (status, disconnected_at, take_expires_at) ON spokes TO hub_system;
GRANT SELECT, DELETE ON operation_specs TO hub_system;

REVOKE ALL ON FUNCTION withdraw_operations(), end_placements(), sweep_spokes(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION sweep_spokes(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION withdraw_operations() OWNER TO hub_system;
ALTER FUNCTION end_placements() OWNER TO hub_system;
ALTER FUNCTION sweep_spokes(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
