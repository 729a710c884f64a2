-- Calls (C10, W05, W08, W09, W18, W19, X06): what was asked of whom, what became of it, and how calls hang together.


-- What is looked up ----------------------------------------------------------------------------------------------

CREATE TABLE call_statuses (
    status      text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT call_statuses_pkey PRIMARY KEY (status)
);
COMMENT ON TABLE call_statuses IS 'How a call is.';
INSERT INTO call_statuses (status, description) VALUES
    ('pending',    'It waits for its spoke to take it.'),
    ('dispatched', 'Its spoke took it, and has not said that it starts.'),
    ('running',    'Its spoke is at work.'),
    ('completed',  'Over: there is an output.'),
    ('failed',     'Over: there is an error.'),
    ('aborted',    'Over: somebody stopped it.');

CREATE TABLE call_status_transitions (
    routed      boolean     NOT NULL,
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT call_status_transitions_pkey PRIMARY KEY (routed, from_status, to_status),
    CONSTRAINT call_status_transitions_from_status_fkey FOREIGN KEY (from_status) REFERENCES call_statuses (status) ON DELETE RESTRICT,
    CONSTRAINT call_status_transitions_to_status_fkey FOREIGN KEY (to_status) REFERENCES call_statuses (status) ON DELETE RESTRICT
);
COMMENT ON TABLE call_status_transitions IS 'X06: which status of a call may follow which: of one that the hub routes, and of one that a runtime records. What is over stays so.';
INSERT INTO call_status_transitions (routed, from_status, to_status) VALUES
    (true, 'pending', 'dispatched'), (true, 'pending', 'failed'), (true, 'pending', 'aborted'),
    (true, 'dispatched', 'running'), (true, 'dispatched', 'pending'), (true, 'dispatched', 'failed'), (true, 'dispatched', 'aborted'),
    (true, 'running', 'completed'), (true, 'running', 'failed'), (true, 'running', 'aborted'), (true, 'running', 'pending'),
    (false, 'pending', 'running'), (false, 'pending', 'completed'), (false, 'pending', 'failed'), (false, 'pending', 'aborted'),
    (false, 'running', 'completed'), (false, 'running', 'failed'), (false, 'running', 'aborted');

CREATE TABLE call_edge_types (
    type        text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT call_edge_types_pkey PRIMARY KEY (type)
);
COMMENT ON TABLE call_edge_types IS 'W05: how one call can hang together with another. The operator may add to it.';
INSERT INTO call_edge_types (type, description) VALUES
    ('triggered',    'The source made this call while it ran. Said by calls.parent_id alone (C10).'),
    ('depends_on',   'The target consumes the source''s output.'),
    ('requested_by', 'The source asked for the target, but does not own its lifetime.');

CREATE TABLE sensitive_names (
    name       text        NOT NULL,
    whole      boolean     NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT sensitive_names_pkey PRIMARY KEY (name),
    CONSTRAINT sensitive_names_shape_check CHECK (name ~ '^[a-z0-9]+$')
);
COMMENT ON TABLE sensitive_names IS 'W08: names of members whose values are not written down. A name is compared in lower case and without anything but letters and digits. The operator may add to it.';
COMMENT ON COLUMN sensitive_names.whole IS 'Whether it is the whole name, or any part of one.';
INSERT INTO sensitive_names (name, whole) VALUES
    ('password', false), ('passwd', false), ('passphrase', false), ('passcode', false), ('secret', false), ('token', false), ('apikey', false),
    ('accesskey', false), ('privatekey', false), ('signingkey', false), ('encryptionkey', false), ('sessionkey', false), ('masterkey', false), ('sshkey', false),
    ('credential', false), ('authorization', false), ('bearer', false), ('cookie', false), ('connectionstring', false), ('privatepem', false), ('jwt', false),
    ('key', true), ('pwd', true), ('pass', true), ('pw', true), ('auth', true), ('pin', true), ('otp', true), ('dsn', true), ('pem', true), ('sas', true), ('cvv', true), ('cvc', true);


-- Redaction and truncation (W08, W18) ----------------------------------------------------------------------------

CREATE FUNCTION sensitive_pattern() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp
RETURN (SELECT string_agg(CASE WHEN s.whole THEN '^' || s.name || '$' ELSE s.name END, '|') FROM sensitive_names s);
COMMENT ON FUNCTION sensitive_pattern() IS 'W08: sensitive_names as one regular expression.';

CREATE FUNCTION bare_name(p_name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN regexp_replace(lower(p_name), '\x10(0|\x10|u[0-9a-f]{4})|[^a-z0-9]', '', 'g');
COMMENT ON FUNCTION bare_name(text) IS 'W08: a name in lower case, without what stands between its letters and digits, and without what stands for NUL and lone surrogates (X07).';

CREATE FUNCTION redacted(p_value jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE jsonb_typeof(p_value) WHEN 'object' THEN '{"_redacted": true}'::jsonb ELSE '"[redacted]"'::jsonb END;
COMMENT ON FUNCTION redacted(jsonb) IS 'W08: what stands in a value''s place. An object stays an object, so that metadata stays metadata (W01).';

CREATE FUNCTION redact_strings(p_value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN CASE jsonb_typeof(p_value)
        WHEN 'string' THEN '"[redacted]"'::jsonb
        WHEN 'object' THEN (SELECT coalesce(jsonb_object_agg(e.key, public.redact_strings(e.value)), '{}') FROM jsonb_each(p_value) e)
        WHEN 'array' THEN (SELECT coalesce(jsonb_agg(public.redact_strings(e.value) ORDER BY e.n), '[]') FROM jsonb_array_elements(p_value) WITH ORDINALITY e(value, n))
        ELSE p_value END;
END $$;
COMMENT ON FUNCTION redact_strings(jsonb) IS 'W08: without its strings: for counts of tokens, which are numbers, under a name that tokens themselves could have.';

CREATE FUNCTION paths_below(p_paths text[], p_name text) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ARRAY(
    SELECT substr(p.path, 2 + length(split_part(p.path, '/', 2)))
    FROM unnest(p_paths) p(path)
    WHERE split_part(p.path, '/', 2) IN ('*', replace(replace(p_name, '~', '~0'), '/', '~1')));
COMMENT ON FUNCTION paths_below(text[], text) IS 'W08: what is left of JSON pointers below a member or element of this name; an empty one is there.';

CREATE FUNCTION redact_json(p_value jsonb, p_pattern text, p_paths text[]) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    v_named boolean;
BEGIN
    IF jsonb_typeof(p_value) = 'object' THEN
        -- {"name": "Authorization", "value": "..."}, as headers and variables are often written.
        v_named := p_value ? 'value' AND EXISTS (SELECT FROM unnest(ARRAY['name', 'key', 'header', 'variable']) n WHERE public.bare_name(p_value ->> n) ~ p_pattern);
        RETURN (
            SELECT coalesce(jsonb_object_agg(e.key, CASE
                WHEN '' = ANY (e.below) THEN public.redacted(e.value)
                WHEN jsonb_typeof(e.value) IN ('null', 'boolean') THEN e.value
                WHEN e.bare ~ '(tokens|tokens?(count|limit|usage|budget|size|used|left)s?)$' AND jsonb_typeof(e.value) <> 'string' THEN public.redact_strings(e.value)
                WHEN e.bare ~ p_pattern OR v_named AND e.key = 'value' THEN public.redacted(e.value)
                WHEN jsonb_typeof(e.value) IN ('object', 'array') THEN public.redact_json(e.value, p_pattern, e.below)
                ELSE e.value END), '{}')
            FROM (SELECT m.key, m.value, public.bare_name(m.key) AS bare,
                         CASE WHEN p_paths = '{}' THEN '{}' ELSE public.paths_below(p_paths, m.key) END AS below
                  FROM jsonb_each(p_value) m) e);
    ELSIF jsonb_typeof(p_value) = 'array' THEN
        RETURN (
            SELECT coalesce(jsonb_agg(CASE
                WHEN '' = ANY (e.below) THEN public.redacted(e.value)
                WHEN jsonb_typeof(e.value) IN ('object', 'array') THEN public.redact_json(e.value, p_pattern, e.below)
                ELSE e.value END ORDER BY e.n), '[]')
            FROM (SELECT m.value, m.n, CASE WHEN p_paths = '{}' THEN '{}' ELSE public.paths_below(p_paths, (m.n - 1)::text) END AS below
                  FROM jsonb_array_elements(p_value) WITH ORDINALITY m(value, n)) e);
    END IF;
    RETURN p_value;
END $$;
COMMENT ON FUNCTION redact_json(jsonb, text, text[]) IS 'W08: without the values under sensitive names, at any depth, and without those that the JSON pointers point at. true, false and null are no secrets.';

CREATE FUNCTION truncate_json(p_value jsonb, p_limit integer) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    v_bytes bytea := convert_to(p_value::text, 'UTF8');
    v_cut   integer := 1024;
BEGIN
    IF octet_length(v_bytes) <= p_limit THEN
        RETURN p_value;
    END IF;
    v_cut := least(v_cut, octet_length(v_bytes));
    WHILE v_cut < octet_length(v_bytes) AND get_byte(v_bytes, v_cut) & 192 = 128 LOOP -- the next byte is in the middle of a character
        v_cut := v_cut - 1;
    END LOOP;
    RETURN jsonb_build_object('_truncated', jsonb_build_object('size', octet_length(v_bytes), 'sha256', encode(sha256(v_bytes), 'hex'),
        'preview', convert_from(substring(v_bytes FROM 1 FOR v_cut), 'UTF8')));
END $$;
COMMENT ON FUNCTION truncate_json(jsonb, integer) IS 'W18: a value whose text has more bytes than the limit becomes a marker with the text''s size, SHA-256 and first 1,024 bytes, cut between characters.';


-- How long ------------------------------------------------------------------------------------------------------

ALTER TABLE retention_policies
    ADD COLUMN call_days         integer DEFAULT 30,
    ADD COLUMN call_payload_days integer,
    ADD COLUMN call_payload_limit integer NOT NULL DEFAULT 10240,
    ADD CONSTRAINT retention_policies_call_days_check CHECK (call_days BETWEEN 1 AND 36500),
    ADD CONSTRAINT retention_policies_call_payload_days_check CHECK (call_payload_days BETWEEN 1 AND 36500),
    ADD CONSTRAINT retention_policies_call_payload_limit_check CHECK (call_payload_limit BETWEEN 0 AND 1048576);
COMMENT ON COLUMN retention_policies.call_days IS 'W09: days that calls are kept; NULL for ever.';
COMMENT ON COLUMN retention_policies.call_payload_days IS 'W09: days that the payloads of calls are kept, where that is shorter; NULL for as long as the call.';
COMMENT ON COLUMN retention_policies.call_payload_limit IS 'W18: bytes of a payload that are written down, where the operation does not say otherwise.';
GRANT UPDATE (call_days, call_payload_days, call_payload_limit) ON retention_policies TO hub_app;


-- Calls ----------------------------------------------------------------------------------------------------------

CREATE TABLE calls (
    org_id              uuid        NOT NULL,
    id                  uuid        NOT NULL DEFAULT hub_uuidv7(),
    request_id          text,
    routed              boolean     NOT NULL,
    operation           text        NOT NULL,
    kind                text,
    status              text        NOT NULL DEFAULT 'pending',
    parent_id           uuid,
    session_id          uuid,
    caller_account_id   uuid,
    identity            jsonb       NOT NULL DEFAULT '{}',
    spoke_id            uuid,
    spoke_epoch         integer,
    pinned              boolean     NOT NULL DEFAULT false,
    attempts            integer     NOT NULL DEFAULT 0,
    max_attempts        integer     NOT NULL DEFAULT 1,
    redact_paths        text[]      NOT NULL DEFAULT '{}',
    payload_limit       integer,
    input               jsonb,
    output              jsonb,
    error               jsonb,
    error_code          text,
    ended_by            text,
    stop_pending        boolean     NOT NULL DEFAULT false,
    stop_told_at        timestamptz,
    deadline_at         timestamptz,
    dispatched_at       timestamptz,
    dispatch_expires_at timestamptz,
    started_at          timestamptz,
    ended_at            timestamptz,
    payloads_expired_at timestamptz,
    storage_url         text,
    metadata            jsonb       NOT NULL DEFAULT '{}',
    revision            integer     NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT calls_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT calls_request_id_key UNIQUE (org_id, request_id),
    CONSTRAINT calls_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE RESTRICT,
    CONSTRAINT calls_parent_id_fkey FOREIGN KEY (org_id, parent_id) REFERENCES calls (org_id, id) ON DELETE SET NULL (parent_id),
    CONSTRAINT calls_session_id_fkey FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE SET NULL (session_id),
    CONSTRAINT calls_caller_account_id_fkey FOREIGN KEY (org_id, caller_account_id) REFERENCES organization_members (org_id, account_id) ON DELETE SET NULL (caller_account_id),
    CONSTRAINT calls_spoke_id_fkey FOREIGN KEY (org_id, spoke_id) REFERENCES spokes (org_id, id) ON DELETE SET NULL (spoke_id),
    CONSTRAINT calls_status_fkey FOREIGN KEY (status) REFERENCES call_statuses (status) ON DELETE RESTRICT,
    CONSTRAINT calls_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT calls_request_id_length_check CHECK (octet_length(request_id) BETWEEN 1 AND 255),
    CONSTRAINT calls_operation_length_check CHECK (char_length(operation) BETWEEN 1 AND 200),
    CONSTRAINT calls_kind_check CHECK (kind IN ('query', 'mutation', 'subscription')),
    CONSTRAINT calls_not_own_parent_check CHECK (parent_id <> id),
    CONSTRAINT calls_attempts_check CHECK (attempts BETWEEN 0 AND max_attempts AND max_attempts BETWEEN 1 AND 10),
    CONSTRAINT calls_redact_paths_shape_check CHECK (are_redact_paths(redact_paths)),
    CONSTRAINT calls_payload_limit_check CHECK (payload_limit BETWEEN 0 AND 1048576),
    CONSTRAINT calls_identity_object_check CHECK (jsonb_typeof(identity) = 'object'),
    CONSTRAINT calls_error_code_length_check CHECK (char_length(error_code) BETWEEN 1 AND 200),
    CONSTRAINT calls_ended_by_check CHECK (ended_by IN ('spoke', 'caller', 'deadline', 'parent', 'spoke_loss', 'recorder')),
    CONSTRAINT calls_ended_whole_check CHECK ((status IN ('completed', 'failed', 'aborted')) = (ended_at IS NOT NULL) AND (ended_at IS NULL) = (ended_by IS NULL)),
    CONSTRAINT calls_held_whole_check CHECK (NOT routed OR (status IN ('dispatched', 'running')) <= (spoke_epoch IS NOT NULL AND dispatched_at IS NOT NULL)),
    CONSTRAINT calls_started_before_ended_check CHECK (started_at <= ended_at),
    CONSTRAINT calls_routed_has_deadline_check CHECK (NOT routed OR deadline_at IS NOT NULL),
    CONSTRAINT calls_storage_url_length_check CHECK (char_length(storage_url) <= 2000),
    CONSTRAINT calls_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE calls IS 'Calls of operations: the nodes of the call graph. What they say of payloads is redacted (W08) and truncated (W18), by whatever way it was written.';
COMMENT ON COLUMN calls.request_id IS 'The caller''s own id: a call that is made or recorded again under it is the same.';
COMMENT ON COLUMN calls.routed IS 'Whether the hub routes it, or a runtime that routes by itself records it.';
COMMENT ON COLUMN calls.operation IS 'namespace.name. A snapshot: the operation may be gone (C03).';
COMMENT ON COLUMN calls.parent_id IS 'C10: the call that made this one while it ran, and the only statement of that.';
COMMENT ON COLUMN calls.caller_account_id IS 'W19: who called. NULL once that account has left.';
COMMENT ON COLUMN calls.identity IS 'W19: account, key, scopes, level and projects of the caller, as they were.';
COMMENT ON COLUMN calls.spoke_id IS 'Who does it, or did it last.';
COMMENT ON COLUMN calls.spoke_epoch IS 'W06: the connection that took it. No other one says anything of it.';
COMMENT ON COLUMN calls.pinned IS 'W04: called by its qualified name: no other spoke will do.';
COMMENT ON COLUMN calls.attempts IS 'How often it was started.';
COMMENT ON COLUMN calls.redact_paths IS 'C03, W08: of the operation, as they were.';
COMMENT ON COLUMN calls.payload_limit IS 'C03, W18: of the operation or the organisation, as it was.';
COMMENT ON COLUMN calls.input IS 'W08, W18: as it may be kept. Strings are escaped (X07).';
COMMENT ON COLUMN calls.output IS 'W08, W18: as it may be kept. Strings are escaped (X07).';
COMMENT ON COLUMN calls.error IS 'W08, W18: details, as they may be kept. Strings are escaped (X07).';
COMMENT ON COLUMN calls.error_code IS 'What went wrong, in a word: deadline_exceeded, spoke_lost, parent_ended, or the operation''s own.';
COMMENT ON COLUMN calls.ended_by IS 'spoke; caller, who aborted it; deadline; parent, that ended first; spoke_loss; recorder, of a call that is recorded.';
COMMENT ON COLUMN calls.stop_pending IS 'Whether its spoke is still to be told that it ended.';
COMMENT ON COLUMN calls.stop_told_at IS 'When it was told first. It is told twice, for an answer may get lost.';
COMMENT ON COLUMN calls.dispatch_expires_at IS 'Until when its spoke must have started it: else it is given out again.';
COMMENT ON COLUMN calls.payloads_expired_at IS 'W09: when its payloads went.';
COMMENT ON COLUMN calls.storage_url IS 'W18: reserved for payloads in object storage.';
COMMENT ON COLUMN calls.metadata IS 'W01: opaque, one object per subsystem. Redacted and truncated as well.';
COMMENT ON COLUMN calls.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT calls_org_id_fkey ON calls IS 'W12. Indexed by calls_request_id_key (W03).';
COMMENT ON CONSTRAINT calls_caller_account_id_fkey ON calls IS 'W19';
COMMENT ON CONSTRAINT calls_id_version_check ON calls IS 'C02';
COMMENT ON CONSTRAINT calls_metadata_check ON calls IS 'W01';

CREATE INDEX calls_parent_id_idx ON calls (org_id, parent_id, id);
CREATE INDEX calls_session_id_idx ON calls (org_id, session_id, id);
CREATE INDEX calls_caller_account_id_idx ON calls (org_id, caller_account_id, id);
CREATE INDEX calls_spoke_id_idx ON calls (org_id, spoke_id, id);
CREATE INDEX calls_operation_idx ON calls (org_id, operation, id);
CREATE INDEX calls_status_idx ON calls (org_id, status, id);
CREATE INDEX calls_started_at_idx ON calls (org_id, started_at);
CREATE INDEX calls_never_started_idx ON calls (org_id, created_at) WHERE started_at IS NULL;
CREATE INDEX calls_pending_idx ON calls (org_id, spoke_id, id) WHERE status = 'pending';
CREATE INDEX calls_alive_idx ON calls (org_id, spoke_id, status) WHERE status IN ('pending', 'dispatched', 'running');
CREATE INDEX calls_stops_idx ON calls (org_id, spoke_id, id) WHERE stop_pending;
CREATE INDEX calls_deadline_idx ON calls (org_id, deadline_at) WHERE status IN ('pending', 'dispatched', 'running') AND routed;
CREATE INDEX calls_dispatch_idx ON calls (org_id, dispatch_expires_at) WHERE status = 'dispatched';
CREATE INDEX calls_payloads_kept_idx ON calls (org_id, id) WHERE payloads_expired_at IS NULL;
COMMENT ON INDEX calls_caller_account_id_idx IS 'W19: ids are times (C02).';
COMMENT ON INDEX calls_started_at_idx IS 'S17';

CREATE FUNCTION clean_call() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_new     boolean := TG_OP = 'INSERT';
    v_pattern text;
BEGIN
    IF v_new THEN
        NEW.payload_limit := coalesce(NEW.payload_limit, (SELECT r.call_payload_limit FROM retention_policies r WHERE r.org_id = NEW.org_id), 10240);
    ELSIF (NEW.input, NEW.output, NEW.error, NEW.metadata) IS NOT DISTINCT FROM (OLD.input, OLD.output, OLD.error, OLD.metadata) THEN
        RETURN NEW;
    END IF;
    IF num_nonnulls(NEW.input, NEW.output, NEW.error, nullif(NEW.metadata, '{}')) > 0 THEN
        v_pattern := sensitive_pattern();
    END IF;
    -- First redacted, then truncated: a preview holds no secret.
    IF NEW.input IS NOT NULL AND (v_new OR NEW.input IS DISTINCT FROM OLD.input) THEN
        NEW.input := truncate_json(redact_json(NEW.input, v_pattern, NEW.redact_paths), NEW.payload_limit);
    END IF;
    IF NEW.output IS NOT NULL AND (v_new OR NEW.output IS DISTINCT FROM OLD.output) THEN
        NEW.output := truncate_json(redact_json(NEW.output, v_pattern, NEW.redact_paths), NEW.payload_limit);
    END IF;
    IF NEW.error IS NOT NULL AND (v_new OR NEW.error IS DISTINCT FROM OLD.error) THEN
        NEW.error := truncate_json(redact_json(NEW.error, v_pattern, NEW.redact_paths), NEW.payload_limit);
    END IF;
    IF NEW.metadata <> '{}' AND (v_new OR NEW.metadata IS DISTINCT FROM OLD.metadata) THEN
        NEW.metadata := truncate_json(redact_json(NEW.metadata, v_pattern, NEW.redact_paths), NEW.payload_limit);
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION clean_call() IS 'W08, W18: payloads are redacted and truncated before they are written, by whomever.';
CREATE TRIGGER calls_clean BEFORE INSERT OR UPDATE ON calls
    FOR EACH ROW EXECUTE FUNCTION clean_call();
COMMENT ON TRIGGER calls_clean ON calls IS 'W08, W18';

CREATE FUNCTION sign_call() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.caller_account_id := public.current_account_id();
    NEW.identity := jsonb_build_object('accountId', public.current_account_id(), 'keyId', public.current_key_id(), 'scopes', to_jsonb(public.current_key_scopes()),
        'projectIds', to_jsonb(public.current_project_ids()), 'membershipLevel', nullif(current_setting('hub.membership_level', true), ''));
    RETURN NEW;
END $$;
COMMENT ON FUNCTION sign_call() IS 'W19: who calls is who is signed in, and nobody else.';
CREATE TRIGGER calls_signed BEFORE INSERT ON calls
    FOR EACH ROW WHEN (current_account_id() IS NOT NULL) EXECUTE FUNCTION sign_call();
COMMENT ON TRIGGER calls_signed ON calls IS 'W19';

CREATE FUNCTION check_call_parent() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_parent calls;
BEGIN
    -- With a lock: whoever ends the parent waits, and then finds this child.
    SELECT * INTO v_parent FROM calls c WHERE (c.org_id, c.id) = (NEW.org_id, NEW.parent_id) FOR SHARE;
    IF v_parent.ended_at IS NOT NULL THEN
        PERFORM raise_rule(TG_NAME, 'The call that makes this one is over.');
    END IF;
    NEW.deadline_at := least(NEW.deadline_at, v_parent.deadline_at);
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_call_parent() IS 'A call that the hub routes ends no later than the one that makes it.';
CREATE TRIGGER calls_parent_alive BEFORE INSERT ON calls
    FOR EACH ROW WHEN (NEW.routed AND NEW.parent_id IS NOT NULL) EXECUTE FUNCTION check_call_parent();

CREATE FUNCTION check_call_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM call_status_transitions t WHERE (t.routed, t.from_status, t.to_status) = (NEW.routed, OLD.status, NEW.status)) THEN
        PERFORM raise_rule(TG_NAME, format('A call that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_call_status() IS 'X06: the steps are rows of call_status_transitions.';
CREATE TRIGGER calls_status_transition BEFORE UPDATE ON calls
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('pending', 'dispatched', 'running', 'completed', 'failed', 'aborted'))
    EXECUTE FUNCTION check_call_status();
COMMENT ON TRIGGER calls_status_transition ON calls IS 'X06';

CREATE TRIGGER calls_identity_immutable BEFORE UPDATE ON calls
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.request_id, OLD.routed, OLD.operation, OLD.identity, OLD.pinned, OLD.max_attempts, OLD.redact_paths, OLD.payload_limit, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.request_id, NEW.routed, NEW.operation, NEW.identity, NEW.pinned, NEW.max_attempts, NEW.redact_paths, NEW.payload_limit, NEW.created_at))
    EXECUTE FUNCTION refuse_change('What a call is, and how it was made,');
CREATE FUNCTION refuse_other_call_links() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- ON DELETE SET NULL comes after the target is gone: nobody else can bring that about.
    IF NEW.parent_id IS DISTINCT FROM OLD.parent_id AND (NEW.parent_id IS NOT NULL OR EXISTS (SELECT FROM calls c WHERE (c.org_id, c.id) = (OLD.org_id, OLD.parent_id)))
       OR NEW.session_id IS DISTINCT FROM OLD.session_id AND (NEW.session_id IS NOT NULL OR EXISTS (SELECT FROM sessions s WHERE (s.org_id, s.id) = (OLD.org_id, OLD.session_id)))
       OR NEW.caller_account_id IS DISTINCT FROM OLD.caller_account_id
          AND (NEW.caller_account_id IS NOT NULL OR EXISTS (SELECT FROM organization_members m WHERE (m.org_id, m.account_id) = (OLD.org_id, OLD.caller_account_id))) THEN
        PERFORM raise_rule(TG_NAME, 'A call keeps its parent, session and caller.');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION refuse_other_call_links() IS 'C10: a call keeps its parent, session and caller for as long as there are such.';
CREATE TRIGGER calls_links_kept BEFORE UPDATE ON calls
    FOR EACH ROW WHEN ((OLD.parent_id, OLD.session_id, OLD.caller_account_id) IS DISTINCT FROM (NEW.parent_id, NEW.session_id, NEW.caller_account_id))
    EXECUTE FUNCTION refuse_other_call_links();
CREATE TRIGGER calls_touch BEFORE UPDATE ON calls
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();

CREATE FUNCTION check_call_recorder() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF public.current_account_id() IS NOT NULL AND OLD.caller_account_id IS DISTINCT FROM public.current_account_id()
       AND public.current_membership_rank() < 2 AND NOT public.is_platform_admin() THEN
        PERFORM public.raise_rule(TG_NAME, 'A call is recorded by who made it, or by admins.', '42501');
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_call_recorder() IS 'Nobody writes over what another account recorded.';
CREATE TRIGGER calls_recorded_by_caller BEFORE UPDATE ON calls
    FOR EACH ROW WHEN (NOT OLD.routed AND (OLD.status, OLD.input, OLD.output, OLD.error, OLD.error_code) IS DISTINCT FROM (NEW.status, NEW.input, NEW.output, NEW.error, NEW.error_code))
    EXECUTE FUNCTION check_call_recorder();


-- Edges (C10, W05) -----------------------------------------------------------------------------------------------

CREATE TABLE call_edge_rows (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    source_call_id uuid    NOT NULL,
    target_call_id uuid    NOT NULL,
    type       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT call_edge_rows_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT call_edge_rows_source_target_type_key UNIQUE (org_id, source_call_id, target_call_id, type),
    CONSTRAINT call_edge_rows_source_call_id_fkey FOREIGN KEY (org_id, source_call_id) REFERENCES calls (org_id, id) ON DELETE CASCADE,
    CONSTRAINT call_edge_rows_target_call_id_fkey FOREIGN KEY (org_id, target_call_id) REFERENCES calls (org_id, id) ON DELETE CASCADE,
    CONSTRAINT call_edge_rows_type_fkey FOREIGN KEY (type) REFERENCES call_edge_types (type) ON DELETE RESTRICT,
    CONSTRAINT call_edge_rows_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT call_edge_rows_not_triggered_check CHECK (type <> 'triggered'),
    CONSTRAINT call_edge_rows_two_calls_check CHECK (source_call_id <> target_call_id)
);
COMMENT ON TABLE call_edge_rows IS 'C10: how calls hang together, but for triggered, which calls.parent_id says. Read the view call_edges.';
COMMENT ON CONSTRAINT call_edge_rows_source_target_type_key ON call_edge_rows IS 'S18: a retry makes no second edge.';
COMMENT ON CONSTRAINT call_edge_rows_not_triggered_check ON call_edge_rows IS 'C10';
COMMENT ON CONSTRAINT call_edge_rows_type_fkey ON call_edge_rows IS 'W05';
COMMENT ON CONSTRAINT call_edge_rows_id_version_check ON call_edge_rows IS 'C02';
CREATE INDEX call_edge_rows_target_call_id_idx ON call_edge_rows (org_id, target_call_id);
COMMENT ON INDEX call_edge_rows_target_call_id_idx IS 'C10: both ends have one.';

CREATE VIEW call_edges WITH (security_invoker = true) AS
    SELECT e.org_id, e.source_call_id, e.target_call_id, e.type, e.created_at FROM call_edge_rows e
    UNION ALL
    SELECT c.org_id, c.parent_id, c.id, 'triggered', c.created_at FROM calls c WHERE c.parent_id IS NOT NULL;
COMMENT ON VIEW call_edges IS 'C10: all edges of the call graph.';


-- Payloads on their way (W18) ------------------------------------------------------------------------------------

CREATE TABLE call_payloads (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    call_id     uuid        NOT NULL,
    direction   text        NOT NULL,
    key_version integer     NOT NULL,
    ciphertext  bytea       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT call_payloads_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT call_payloads_call_id_direction_key UNIQUE (org_id, call_id, direction),
    CONSTRAINT call_payloads_call_id_fkey FOREIGN KEY (org_id, call_id) REFERENCES calls (org_id, id) ON DELETE CASCADE,
    CONSTRAINT call_payloads_key_version_fkey FOREIGN KEY (key_version) REFERENCES encryption_keys (version) ON DELETE RESTRICT,
    CONSTRAINT call_payloads_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT call_payloads_direction_check CHECK (direction IN ('input', 'output')),
    CONSTRAINT call_payloads_size_check CHECK (octet_length(ciphertext) <= 8388608 + 29)
);
COMMENT ON TABLE call_payloads IS 'W18: inputs and outputs to the letter, encrypted, while calls are on their way: an input until its call ends, an output until it is delivered.';
COMMENT ON COLUMN call_payloads.key_version IS 'C11: the key of the ring that encrypted it.';
COMMENT ON COLUMN call_payloads.ciphertext IS 'At most 8 MiB, encrypted as internal/keyring does.';
COMMENT ON CONSTRAINT call_payloads_id_version_check ON call_payloads IS 'C02';
ALTER TABLE call_payloads ALTER COLUMN ciphertext SET STORAGE EXTERNAL; -- what is encrypted does not compress
CREATE INDEX call_payloads_created_at_idx ON call_payloads (org_id, created_at);
CREATE INDEX call_payloads_key_version_idx ON call_payloads (key_version, org_id, id);
COMMENT ON INDEX call_payloads_key_version_idx IS 'C11: for that foreign key.';


-- What follows from an end ---------------------------------------------------------------------------------------

CREATE FUNCTION settle_call() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    DELETE FROM call_payloads p WHERE (p.org_id, p.call_id, p.direction) = (NEW.org_id, NEW.id, 'input');
    IF NEW.status <> 'completed' AND NEW.ended_by <> 'parent' THEN
        WITH RECURSIVE below AS (
            SELECT c.id, 1 AS depth FROM calls c WHERE (c.org_id, c.parent_id) = (NEW.org_id, NEW.id)
            UNION
            SELECT c.id, b.depth + 1 FROM below b JOIN calls c ON (c.org_id, c.parent_id) = (NEW.org_id, b.id) WHERE b.depth < 1000
        ), alive AS (
            SELECT c.id FROM calls c JOIN below b ON b.id = c.id
            WHERE c.org_id = NEW.org_id AND c.routed AND c.ended_at IS NULL ORDER BY c.id FOR NO KEY UPDATE OF c
        )
        UPDATE calls c SET status = 'aborted', error_code = 'parent_ended', ended_by = 'parent', ended_at = clock_timestamp(), stop_pending = c.status IN ('dispatched', 'running')
        FROM alive a WHERE c.org_id = NEW.org_id AND c.id = a.id;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION settle_call() IS 'When a call ends its exact input goes; when it fails or is aborted, what it has called, and what that has called, is aborted.';
CREATE TRIGGER calls_settled AFTER UPDATE ON calls
    FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND NEW.routed) EXECUTE FUNCTION settle_call();

CREATE FUNCTION pick_spoke(p_org_id uuid, p_namespace text, p_name text, p_not uuid) RETURNS uuid
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp
RETURN (SELECT s.id FROM operation_specs o JOIN spokes s ON (s.org_id, s.id) = (o.org_id, o.spoke_id)
        WHERE o.org_id = p_org_id AND o.namespace = p_namespace AND o.name = p_name AND s.status = 'connected' AND s.id <> p_not AND o.kind <> 'subscription'
        ORDER BY coalesce(s.take_expires_at > now(), false) DESC,
                 (SELECT count(*) FROM calls c WHERE c.org_id = s.org_id AND c.spoke_id = s.id AND c.status IN ('pending', 'dispatched', 'running')), random()
        LIMIT 1);
COMMENT ON FUNCTION pick_spoke(uuid, text, text, uuid) IS 'W04: the least busy connected spoke that offers an operation, one that is ready first; but not this one.';

CREATE FUNCTION release_calls() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_call  calls;
    v_spoke uuid;
BEGIN
    FOR v_call IN
        SELECT * FROM calls c
        WHERE c.org_id = NEW.org_id AND c.spoke_id = NEW.id AND c.status IN ('pending', 'dispatched', 'running') AND c.routed
          AND (NEW.status = 'disconnected' OR c.status <> 'pending')
        ORDER BY c.id FOR NO KEY UPDATE
    LOOP
        v_spoke := NULL;
        IF v_call.status <> 'running' OR v_call.attempts < v_call.max_attempts THEN
            IF NEW.status <> 'disconnected' THEN
                v_spoke := NEW.id; -- it is back, as another connection
            ELSIF NOT v_call.pinned THEN
                LOOP
                    v_spoke := pick_spoke(NEW.org_id, split_part(v_call.operation, '.', 1), substr(v_call.operation, strpos(v_call.operation, '.') + 1), NEW.id);
                    -- With a lock, as enqueue_call: whoever disconnects that one waits, and then finds the call. It may have gone just now.
                    EXIT WHEN v_spoke IS NULL;
                    PERFORM FROM spokes s WHERE (s.org_id, s.id) = (NEW.org_id, v_spoke) AND s.status = 'connected' FOR SHARE;
                    EXIT WHEN FOUND;
                END LOOP;
            END IF;
        END IF;
        IF v_spoke IS NULL THEN
            UPDATE calls c SET status = 'failed', error_code = 'spoke_lost', ended_by = 'spoke_loss', ended_at = clock_timestamp()
            WHERE (c.org_id, c.id) = (v_call.org_id, v_call.id);
        ELSE
            UPDATE calls c SET status = 'pending', spoke_id = v_spoke, spoke_epoch = NULL, dispatched_at = NULL, dispatch_expires_at = NULL
            WHERE (c.org_id, c.id) = (v_call.org_id, v_call.id);
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION release_calls() IS
    'W06: a connection that ends gives its calls back: those that have not started always, those that run while attempts are left. To the spoke''s next connection, or to another that offers the operation, unless they name this one. The others fail.';
CREATE TRIGGER spokes_calls_released AFTER UPDATE ON spokes
    FOR EACH ROW WHEN (NEW.status = 'disconnected' AND OLD.status <> 'disconnected' OR NEW.epoch > OLD.epoch) EXECUTE FUNCTION release_calls();
COMMENT ON TRIGGER spokes_calls_released ON spokes IS 'W06';


-- Routing --------------------------------------------------------------------------------------------------------

CREATE FUNCTION covers_scope(p_scope text) RETURNS boolean
LANGUAGE sql STABLE
RETURN p_scope = ANY (current_key_scopes()) OR '*' = ANY (current_key_scopes());
COMMENT ON FUNCTION covers_scope(text) IS 'Whether the calling key covers a scope of the organisation.';

CREATE FUNCTION find_operation(p_name text) RETURNS SETOF operation_specs
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_spec    operation_specs;
    v_missing text;
BEGIN
    SELECT o.* INTO v_spec
    FROM operation_specs o JOIN spokes s ON (s.org_id, s.id) = (o.org_id, o.spoke_id)
    WHERE o.org_id = current_org_id()
      AND (o.qualified_name = p_name OR o.namespace = split_part(p_name, '.', 1) AND o.name = substr(p_name, strpos(p_name, '.') + 1))
    ORDER BY s.status = 'connected' DESC, coalesce(s.take_expires_at > now(), false) DESC,
             (SELECT count(*) FROM calls c WHERE c.org_id = s.org_id AND c.spoke_id = s.id AND c.status IN ('pending', 'dispatched', 'running')), random()
    LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    v_missing := (SELECT string_agg(s, ', ') FROM unnest(v_spec.scopes_all) s WHERE NOT covers_scope(s));
    IF v_missing IS NULL AND v_spec.scopes_any <> '{}' AND NOT EXISTS (SELECT FROM unnest(v_spec.scopes_any) s WHERE covers_scope(s)) THEN
        v_missing := 'any of ' || array_to_string(v_spec.scopes_any, ', ');
    END IF;
    IF v_missing IS NOT NULL THEN
        PERFORM raise_rule('operation_scopes_covered', format('The operation takes the scope %s.', v_missing), '42501');
    END IF;
    IF v_spec.kind = 'subscription' THEN
        PERFORM raise_rule('operation_callable', 'A subscription is not called through the hub.');
    END IF;
    IF NOT EXISTS (SELECT FROM spokes s WHERE (s.org_id, s.id) = (v_spec.org_id, v_spec.spoke_id) AND s.status = 'connected') THEN
        PERFORM raise_rule('operation_offered_now', 'No spoke that offers the operation is connected.', '55000');
    END IF;
    RETURN NEXT v_spec;
END $$;
COMMENT ON FUNCTION find_operation(text) IS 'W04: what a call by this name would be: of a qualified one that spoke''s, else of the least busy connected spoke that offers it. Refuses who lacks its scopes. No row where there is none.';

CREATE FUNCTION enqueue_call(p_id uuid, p_spec_id uuid, p_spec_revision integer, p_pinned boolean, p_request_id text, p_parent_id uuid, p_session_id uuid,
    p_timeout_seconds integer, p_input jsonb, p_metadata jsonb, p_key_version integer, p_ciphertext bytea) RETURNS SETOF calls
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_call calls;
BEGIN
    INSERT INTO calls (org_id, id, request_id, routed, operation, kind, parent_id, session_id, spoke_id, pinned, max_attempts, redact_paths, payload_limit, input, deadline_at, metadata)
    SELECT o.org_id, p_id, p_request_id, true, o.namespace || '.' || o.name, o.kind, p_parent_id, p_session_id, o.spoke_id, p_pinned, o.max_attempts, o.redact_paths, o.payload_limit,
           p_input, clock_timestamp() + make_interval(secs => p_timeout_seconds), p_metadata
    FROM operation_specs o
    JOIN (SELECT s.org_id, s.id FROM spokes s WHERE s.org_id = current_org_id() AND s.status = 'connected'
            AND s.id = (SELECT w.spoke_id FROM operation_specs w WHERE w.org_id = current_org_id() AND w.id = p_spec_id) FOR SHARE) s ON (s.org_id, s.id) = (o.org_id, o.spoke_id)
    WHERE o.org_id = current_org_id() AND o.id = p_spec_id AND o.revision = p_spec_revision
    RETURNING * INTO v_call;
    IF NOT FOUND THEN
        RETURN; -- the operation has changed since it was found, or its spoke is gone
    END IF;
    INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (v_call.org_id, v_call.id, 'input', p_key_version, p_ciphertext);
    RETURN NEXT v_call;
END $$;
COMMENT ON FUNCTION enqueue_call(uuid, uuid, integer, boolean, text, uuid, uuid, integer, jsonb, jsonb, integer, bytea) IS
    'Gives a call to the spoke of an operation that find_operation found. The spoke is locked: whoever disconnects it waits, and then finds the call.';

CREATE FUNCTION take_calls(p_spoke_id uuid, p_epoch integer, p_calls integer, p_bytes bigint, p_wait_seconds integer,
    OUT held boolean, OUT stopped boolean, OUT id uuid, OUT operation text, OUT attempt integer, OUT parent_id uuid, OUT session_id uuid, OUT caller_account_id uuid, OUT identity jsonb,
    OUT metadata jsonb, OUT deadline_at timestamptz, OUT key_version integer, OUT ciphertext bytea) RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
#variable_conflict use_column
BEGIN
    -- A take that a crash of the database forgets is taken again: its spoke has started nothing yet. So nobody waits for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM hold_spoke(p_spoke_id, p_epoch);
    IF NOT FOUND THEN
        RETURN;
    END IF;
    UPDATE spokes s SET status = 'connected', lease_expires_at = greatest(s.lease_expires_at, now() + make_interval(secs => s.lease_seconds + p_wait_seconds)),
        take_expires_at = now() + make_interval(secs => p_wait_seconds + 2)
    WHERE s.org_id = current_org_id() AND s.id = p_spoke_id RETURNING s.take_expires_at INTO deadline_at;
    held := true;
    RETURN NEXT;
    RETURN QUERY
        UPDATE calls c SET stop_pending = c.stop_told_at IS NULL, stop_told_at = now()
        WHERE c.org_id = current_org_id() AND c.spoke_id = p_spoke_id AND c.stop_pending AND (c.stop_told_at IS NULL OR c.stop_told_at < now() - interval '5 seconds')
        RETURNING false, true, c.id, c.operation, c.attempts, NULL::uuid, NULL::uuid, NULL::uuid, NULL::jsonb, NULL::jsonb, NULL::timestamptz, NULL::integer, NULL::bytea;
    RETURN QUERY
        WITH queued AS MATERIALIZED (
            SELECT c.id FROM calls c
            WHERE c.org_id = current_org_id() AND c.spoke_id = p_spoke_id AND c.status = 'pending' AND c.deadline_at > now()
            ORDER BY c.id LIMIT p_calls FOR NO KEY UPDATE SKIP LOCKED
        ), sized AS (
            SELECT q.id, p.key_version, p.ciphertext, sum(octet_length(p.ciphertext)) OVER (ORDER BY q.id) - octet_length(p.ciphertext) AS before
            FROM queued q JOIN call_payloads p ON p.org_id = current_org_id() AND p.call_id = q.id AND p.direction = 'input'
        )
        UPDATE calls c SET status = 'dispatched', spoke_epoch = p_epoch, dispatched_at = clock_timestamp(), dispatch_expires_at = clock_timestamp() + interval '30 seconds'
        FROM sized z
        WHERE c.org_id = current_org_id() AND c.id = z.id AND z.before < p_bytes
        RETURNING false, false, c.id, c.operation, c.attempts + 1, c.parent_id, c.session_id, c.caller_account_id, c.identity, c.metadata, c.deadline_at, z.key_version, z.ciphertext;
END $$;
COMMENT ON FUNCTION take_calls(uuid, integer, integer, bigint, integer) IS
    'A spoke''s take: first a row that says that the connection holds, and until when the take does, then calls that it must stop, then calls for it, up to so many and so many bytes. It is a heartbeat as well, for as long as the take waits.';

CREATE FUNCTION step_call(p_call_id uuid, p_spoke_id uuid, p_epoch integer, p_status text, p_output jsonb, p_error jsonb, p_error_code text, p_key_version integer, p_ciphertext bytea)
RETURNS SETOF calls
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_call calls;
BEGIN
    SELECT * INTO v_call FROM calls c WHERE c.org_id = current_org_id() AND c.id = p_call_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF (v_call.spoke_id, v_call.spoke_epoch) IS DISTINCT FROM (p_spoke_id, p_epoch)
       OR NOT EXISTS (SELECT FROM spokes s WHERE (s.org_id, s.id) = (v_call.org_id, p_spoke_id)
                      AND (s.account_id = current_account_id() OR current_membership_rank() >= 2 OR is_platform_admin())) THEN
        PERFORM raise_rule('call_held_by_connection', 'This connection does not hold the call: it was given back, or is another spoke''s.');
    END IF;
    IF v_call.ended_at IS NOT NULL THEN
        PERFORM raise_rule('call_not_over', format('The call is over: it is %s.', v_call.status));
    END IF;
    IF v_call.status = p_status THEN
        PERFORM raise_rule('call_started_once', 'The call was started already.');
    END IF;
    IF p_status = 'running' THEN
        RETURN QUERY UPDATE calls c SET status = 'running', attempts = c.attempts + 1, started_at = clock_timestamp(), dispatch_expires_at = NULL
            WHERE c.org_id = v_call.org_id AND c.id = v_call.id RETURNING c.*;
        RETURN;
    END IF;
    IF p_ciphertext IS NOT NULL THEN
        INSERT INTO call_payloads (org_id, call_id, direction, key_version, ciphertext) VALUES (v_call.org_id, v_call.id, 'output', p_key_version, p_ciphertext);
    END IF;
    RETURN QUERY UPDATE calls c SET status = p_status, output = p_output, error = p_error, error_code = p_error_code, ended_by = 'spoke', ended_at = clock_timestamp()
        WHERE c.org_id = v_call.org_id AND c.id = v_call.id RETURNING c.*;
END $$;
COMMENT ON FUNCTION step_call(uuid, uuid, integer, text, jsonb, jsonb, text, integer, bytea) IS
    'A spoke''s step of a call that its connection holds: running, completed, failed or aborted. The call''s row is the fence: who releases a dead connection''s calls writes it too. No row where there is no such call.';

CREATE FUNCTION fetch_output(p_call_id uuid, OUT key_version integer, OUT ciphertext bytea) RETURNS SETOF record
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true); -- after a crash of the database it may be there once more, for an hour at most
    RETURN QUERY
        DELETE FROM call_payloads p USING calls c
        WHERE p.org_id = current_org_id() AND p.call_id = p_call_id AND p.direction = 'output'
          AND c.org_id = p.org_id AND c.id = p.call_id AND c.caller_account_id = current_account_id()
        RETURNING p.key_version, p.ciphertext;
END $$;
COMMENT ON FUNCTION fetch_output(uuid) IS 'W18: the exact output of one''s own call, once. No row where it was fetched, or is somebody else''s.';

CREATE FUNCTION abort_call(p_call_id uuid, p_reason text) RETURNS SETOF calls
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_call calls;
BEGIN
    SELECT * INTO v_call FROM calls c WHERE c.org_id = current_org_id() AND c.id = p_call_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_call.caller_account_id IS DISTINCT FROM current_account_id() AND current_membership_rank() < 2 AND NOT is_platform_admin() THEN
        PERFORM raise_rule('call_aborted_by_caller', 'A call is aborted by its caller, by its spoke, or by an admin.', '42501');
    END IF;
    IF v_call.ended_at IS NOT NULL THEN
        PERFORM raise_rule('call_not_over', format('The call is over: it is %s.', v_call.status));
    END IF;
    RETURN QUERY UPDATE calls c SET status = 'aborted', error_code = 'aborted', error = CASE WHEN p_reason IS NULL THEN NULL ELSE jsonb_build_object('message', p_reason) END,
            ended_by = CASE WHEN c.routed THEN 'caller' ELSE 'recorder' END, ended_at = clock_timestamp(), stop_pending = c.routed AND c.status IN ('dispatched', 'running')
        WHERE c.org_id = v_call.org_id AND c.id = v_call.id RETURNING c.*;
END $$;
COMMENT ON FUNCTION abort_call(uuid, text) IS 'The caller''s abort. The spoke is told with its next take; what it says of the call afterwards is refused.';

CREATE FUNCTION find_work(p_org_ids uuid[], p_ids uuid[]) RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT w.id FROM unnest(p_org_ids, p_ids) w(org_id, id)
    WHERE EXISTS (SELECT FROM calls c WHERE c.org_id = w.org_id AND c.spoke_id = w.id AND c.status = 'pending')
       OR EXISTS (SELECT FROM calls c WHERE c.org_id = w.org_id AND c.spoke_id = w.id AND c.stop_pending AND (c.stop_told_at IS NULL OR c.stop_told_at < now() - interval '5 seconds'))
       OR EXISTS (SELECT FROM calls c WHERE c.org_id = w.org_id AND c.id = w.id AND c.ended_at IS NOT NULL)
$$;
COMMENT ON FUNCTION find_work(uuid[], uuid[]) IS 'Of spokes and calls that somebody waits for, those with something to take, and those that ended: one look for all who wait on a server.';

CREATE FUNCTION sweep_calls(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_total bigint;
    v_count bigint;
BEGIN
    UPDATE calls c SET status = 'failed', error_code = 'deadline_exceeded', ended_by = 'deadline', ended_at = clock_timestamp(), stop_pending = c.status IN ('dispatched', 'running')
    WHERE (c.org_id, c.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT w.org_id, w.id FROM calls w
            WHERE w.org_id = o.id AND w.status IN ('pending', 'dispatched', 'running') AND w.routed AND w.deadline_at < now()
            ORDER BY w.deadline_at LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED) d
        LIMIT p_rows)
      AND c.ended_at IS NULL;
    GET DIAGNOSTICS v_total = ROW_COUNT;
    UPDATE calls c SET status = 'pending', spoke_epoch = NULL, dispatched_at = NULL, dispatch_expires_at = NULL
    WHERE (c.org_id, c.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT w.org_id, w.id FROM calls w
            WHERE w.org_id = o.id AND w.status = 'dispatched' AND w.dispatch_expires_at < now()
            ORDER BY w.dispatch_expires_at LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED) d
        LIMIT p_rows)
      AND c.status = 'dispatched';
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_total + v_count;
END $$;
COMMENT ON FUNCTION sweep_calls(integer) IS 'Fails calls whose deadline has passed, and gives out again what was taken and not started. Returns how many; several servers may sweep at once.';


-- Retention (W09) ------------------------------------------------------------------------------------------------

CREATE FUNCTION purge_calls(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_policy   retention_policies;
    v_calls    uuid; -- Ids are times (C02). As variables, so that they bound the scan of an index: hub_uuidv7_at is volatile.
    v_payloads uuid;
    v_count    bigint;
    v_last     uuid;
BEGIN
    PERFORM set_config('hub.actor_source', 'worker', true);
    FOR v_policy IN SELECT * FROM retention_policies r WHERE coalesce(r.call_payload_days, r.call_days) IS NOT NULL ORDER BY r.org_id LOOP
        v_calls := CASE WHEN v_policy.call_days IS NOT NULL THEN hub_uuidv7_at((extract(epoch FROM now() - make_interval(days => v_policy.call_days)) * 4096000)::bigint) END;
        v_payloads := CASE WHEN v_policy.call_payload_days IS NOT NULL THEN hub_uuidv7_at((extract(epoch FROM now() - make_interval(days => v_policy.call_payload_days)) * 4096000)::bigint) END;
        WITH due AS (
            SELECT d.id FROM calls d WHERE d.org_id = v_policy.org_id AND d.id < v_calls ORDER BY d.id LIMIT p_rows FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM calls c USING due WHERE c.org_id = v_policy.org_id AND c.id = due.id RETURNING c.id
        )
        SELECT count(*), max(g.id::text)::uuid INTO v_count, v_last FROM gone g;
        IF v_count > 0 THEN
            PERFORM append_audit(v_policy.org_id, 'call.purge', 'call', NULL, jsonb_build_object('calls', v_count, 'through', v_last));
            RETURN v_count;
        END IF;
        WITH due AS (
            SELECT d.id FROM calls d
            WHERE d.org_id = v_policy.org_id AND d.payloads_expired_at IS NULL AND d.id < v_payloads AND d.ended_at IS NOT NULL
            ORDER BY d.id LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED
        ), bare AS (
            UPDATE calls c SET input = NULL, output = NULL, error = NULL, metadata = '{}', payloads_expired_at = now()
            FROM due WHERE c.org_id = v_policy.org_id AND c.id = due.id RETURNING c.id
        )
        SELECT count(*), max(b.id::text)::uuid INTO v_count, v_last FROM bare b;
        IF v_count > 0 THEN
            PERFORM append_audit(v_policy.org_id, 'call.expire_payloads', 'call', NULL, jsonb_build_object('calls', v_count, 'through', v_last));
            RETURN v_count;
        END IF;
    END LOOP;
    RETURN 0;
END $$;
COMMENT ON FUNCTION purge_calls(integer) IS 'W09: one batch of what an organisation no longer keeps: whole calls, then the payloads of younger ones. Rows that somebody writes are passed over. Each batch is on record. Returns how many; 0 when nothing is due.';

CREATE FUNCTION purge_call_payloads(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_count bigint;
BEGIN
    DELETE FROM call_payloads p
    WHERE (p.org_id, p.id) IN (
        SELECT d.org_id, d.id FROM organizations o, LATERAL (
            SELECT w.org_id, w.id FROM call_payloads w JOIN calls c ON (c.org_id, c.id) = (w.org_id, w.call_id)
            WHERE w.org_id = o.id AND w.created_at < now() - interval '1 hour' AND c.ended_at < now() - interval '1 hour' LIMIT p_rows) d
        LIMIT p_rows);
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$;
COMMENT ON FUNCTION purge_call_payloads(integer) IS 'W18: removes exact outputs that nobody has fetched within an hour. Returns how many.';


-- Who may see what (X01) -----------------------------------------------------------------------------------------

ALTER TABLE calls ENABLE ROW LEVEL SECURITY;
ALTER TABLE calls FORCE ROW LEVEL SECURITY;
ALTER TABLE call_edge_rows ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_edge_rows FORCE ROW LEVEL SECURITY;
ALTER TABLE call_payloads ENABLE ROW LEVEL SECURITY;
ALTER TABLE call_payloads FORCE ROW LEVEL SECURITY;

CREATE POLICY calls_tenant ON calls TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY call_edge_rows_tenant ON call_edge_rows TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY call_payloads_tenant ON call_payloads TO hub_app USING (org_id = (SELECT current_org_id()));
-- A key that is limited to projects reaches the calls of their sessions, its account's own without a session, and what its account's spokes do.
CREATE POLICY calls_limited ON calls AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE
           session_id IS NULL AND caller_account_id = (SELECT current_account_id())
           OR EXISTS (SELECT FROM sessions s WHERE (s.org_id, s.id) = (calls.org_id, calls.session_id))
           OR EXISTS (SELECT FROM spokes s WHERE (s.org_id, s.id) = (calls.org_id, calls.spoke_id) AND s.account_id = (SELECT current_account_id())) END);
CREATE POLICY call_edge_rows_limited ON call_edge_rows AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE
           EXISTS (SELECT FROM calls c WHERE (c.org_id, c.id) = (call_edge_rows.org_id, call_edge_rows.source_call_id))
           AND EXISTS (SELECT FROM calls c WHERE (c.org_id, c.id) = (call_edge_rows.org_id, call_edge_rows.target_call_id)) END);
CREATE POLICY call_payloads_limited ON call_payloads AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE EXISTS (SELECT FROM calls c WHERE (c.org_id, c.id) = (call_payloads.org_id, call_payloads.call_id)) END);
CREATE POLICY calls_sweeping ON calls TO hub_system USING (true);
CREATE POLICY call_edge_rows_purge ON call_edge_rows TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY call_payloads_sweeping ON call_payloads TO hub_system USING (true);

GRANT SELECT ON call_statuses, call_status_transitions, call_edge_types, sensitive_names TO hub_app, hub_system;
GRANT SELECT ON calls TO hub_app;
GRANT INSERT (org_id, id, request_id, routed, operation, kind, status, parent_id, session_id, spoke_id, pinned, max_attempts, redact_paths, payload_limit, input, output, error, error_code,
              ended_by, deadline_at, started_at, ended_at, metadata),
      UPDATE (routed, kind, status, spoke_epoch, attempts, input, output, error, error_code, ended_by, stop_pending, stop_told_at, dispatched_at, dispatch_expires_at, started_at, ended_at, metadata) ON calls TO hub_app;
GRANT SELECT, INSERT (org_id, source_call_id, target_call_id, type) ON call_edge_rows TO hub_app;
GRANT SELECT ON call_edges TO hub_app;
GRANT SELECT, DELETE, INSERT (org_id, call_id, direction, key_version, ciphertext) ON call_payloads TO hub_app;
GRANT SELECT, DELETE, UPDATE (status, spoke_id, spoke_epoch, input, output, error, error_code, ended_by, ended_at, stop_pending, dispatched_at, dispatch_expires_at, payloads_expired_at, metadata) ON calls TO hub_system;
GRANT SELECT, DELETE ON call_edge_rows, call_payloads TO hub_system;

REVOKE ALL ON FUNCTION settle_call(), release_calls(), find_work(uuid[], uuid[]), sweep_calls(integer), purge_calls(integer), purge_call_payloads(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION find_work(uuid[], uuid[]), sweep_calls(integer), purge_calls(integer), purge_call_payloads(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION settle_call() OWNER TO hub_system;
ALTER FUNCTION release_calls() OWNER TO hub_system;
ALTER FUNCTION find_work(uuid[], uuid[]) OWNER TO hub_system;
ALTER FUNCTION sweep_calls(integer) OWNER TO hub_system;
ALTER FUNCTION purge_calls(integer) OWNER TO hub_system;
ALTER FUNCTION purge_call_payloads(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
