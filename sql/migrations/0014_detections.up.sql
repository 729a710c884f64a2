-- Detections (W21): what is wrong with a session. Whoever watches reports it; hub watches too, by each organisation's watch policy.


-- What is looked up ----------------------------------------------------------------------------------------------

CREATE FUNCTION severity_rank(p_severity text) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN array_position(ARRAY['low', 'medium', 'high', 'critical'], p_severity);
COMMENT ON FUNCTION severity_rank(text) IS 'Orders severities: 1 low, 2 medium, 3 high, 4 critical; NULL for what is none. Text, not an enum: under row-level security enum equality uses no index.';

CREATE TABLE built_in_anomalies (
    name        text        NOT NULL,
    severity    text        NOT NULL,
    description text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT built_in_anomalies_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE built_in_anomalies IS 'W21: the anomaly types that each organisation begins with: those that hub itself watches for.';
INSERT INTO built_in_anomalies (name, severity, description) VALUES
    ('SESSION_STALL',     'medium', 'A session is running, and nothing has happened in it for some time.'),
    ('HIGH_ERROR_COUNT',  'high',   'Many of the tool calls that a session began lately have failed.'),
    ('MODEL_DEGRADATION', 'high',   'A model that the session uses fails more often, or answers more slowly, than it did before.');

CREATE TABLE detection_status_transitions (
    from_status text        NOT NULL,
    to_status   text        NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT detection_status_transitions_pkey PRIMARY KEY (from_status, to_status)
);
COMMENT ON TABLE detection_status_transitions IS 'X06, W21: a detection is open, perhaps acknowledged, and then resolved for good: what comes again is another one.';
INSERT INTO detection_status_transitions (from_status, to_status) VALUES ('open', 'acknowledged'), ('open', 'resolved'), ('acknowledged', 'resolved');


-- Anomaly types --------------------------------------------------------------------------------------------------

CREATE TABLE anomaly_types (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    name        text        NOT NULL,
    severity    text        NOT NULL DEFAULT 'medium',
    description text        NOT NULL DEFAULT '',
    built_in    boolean     NOT NULL DEFAULT false,
    metadata    jsonb       NOT NULL DEFAULT '{}',
    revision    integer     NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT anomaly_types_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT anomaly_types_name_key UNIQUE (org_id, name),
    CONSTRAINT anomaly_types_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE CASCADE,
    CONSTRAINT anomaly_types_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT anomaly_types_name_shape_check CHECK (name ~ '^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$' AND char_length(name) <= 100),
    CONSTRAINT anomaly_types_severity_check CHECK (severity_rank(severity) IS NOT NULL),
    CONSTRAINT anomaly_types_description_length_check CHECK (char_length(description) <= 10000),
    CONSTRAINT anomaly_types_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE anomaly_types IS 'W21: what can be wrong with a session. Each organisation has the built-in ones, and adds its own.';
COMMENT ON COLUMN anomaly_types.name IS 'What detections refer to. Immutable.';
COMMENT ON COLUMN anomaly_types.severity IS 'Of detections that do not say their own.';
COMMENT ON COLUMN anomaly_types.built_in IS 'One of built_in_anomalies: it stays, but its severity and description are the organisation''s.';
COMMENT ON COLUMN anomaly_types.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN anomaly_types.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT anomaly_types_org_id_fkey ON anomaly_types IS 'W12. Indexed by anomaly_types_name_key (W03).';
COMMENT ON CONSTRAINT anomaly_types_name_key ON anomaly_types IS 'W21: what detections refer to.';
COMMENT ON CONSTRAINT anomaly_types_id_version_check ON anomaly_types IS 'C02';
COMMENT ON CONSTRAINT anomaly_types_metadata_check ON anomaly_types IS 'W01';

CREATE TRIGGER anomaly_types_touch BEFORE UPDATE ON anomaly_types
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER anomaly_types_identity_immutable BEFORE UPDATE ON anomaly_types
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.name, OLD.built_in, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.name, NEW.built_in, NEW.created_at))
    EXECUTE FUNCTION refuse_change('An anomaly type''s organisation, id, name and creation time');
CREATE TRIGGER anomaly_types_beyond_limits BEFORE UPDATE OR DELETE ON anomaly_types
    FOR EACH ROW WHEN (current_project_ids() IS NOT NULL) EXECUTE FUNCTION refuse_limited_key();
COMMENT ON TRIGGER anomaly_types_beyond_limits ON anomaly_types IS 'X01: detections of all projects refer to a type.';

CREATE FUNCTION refuse_built_in() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    -- It goes with its organisation, and with nothing else.
    IF EXISTS (SELECT FROM organizations o WHERE o.id = OLD.org_id AND o.deleted_at IS NULL) THEN
        PERFORM raise_rule(TG_NAME, 'An anomaly type that is built in cannot be deleted.');
    END IF;
    RETURN OLD;
END $$;
COMMENT ON FUNCTION refuse_built_in() IS 'W21: hub watches for what is built in, and needs it.';
CREATE TRIGGER anomaly_types_built_in BEFORE DELETE ON anomaly_types
    FOR EACH ROW WHEN (OLD.built_in) EXECUTE FUNCTION refuse_built_in();
COMMENT ON TRIGGER anomaly_types_built_in ON anomaly_types IS 'W21';


-- Detections -----------------------------------------------------------------------------------------------------

CREATE TABLE detections (
    org_id             uuid        NOT NULL,
    id                 uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id         uuid        NOT NULL,
    session_id         uuid        NOT NULL,
    anomaly_type       text        NOT NULL,
    severity           text        NOT NULL,
    origin             text        NOT NULL DEFAULT 'api',
    status             text        NOT NULL DEFAULT 'open',
    resolution         text,
    reason             text        NOT NULL DEFAULT '',
    count              integer     NOT NULL DEFAULT 1,
    first_seen_at      timestamptz NOT NULL DEFAULT now(),
    last_seen_at       timestamptz NOT NULL DEFAULT now(),
    acknowledged_at    timestamptz,
    acknowledged_by_id uuid,
    resolved_at        timestamptz,
    resolved_by_id     uuid,
    evidence           jsonb       NOT NULL DEFAULT '{}',
    metadata           jsonb       NOT NULL DEFAULT '{}',
    revision           integer     NOT NULL DEFAULT 1,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT detections_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT detections_session_id_fkey FOREIGN KEY (org_id, project_id, session_id) REFERENCES sessions (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT detections_anomaly_type_fkey FOREIGN KEY (org_id, anomaly_type) REFERENCES anomaly_types (org_id, name) ON DELETE RESTRICT,
    CONSTRAINT detections_acknowledged_by_id_fkey FOREIGN KEY (org_id, acknowledged_by_id) REFERENCES organization_members (org_id, account_id) ON DELETE SET NULL (acknowledged_by_id),
    CONSTRAINT detections_resolved_by_id_fkey FOREIGN KEY (org_id, resolved_by_id) REFERENCES organization_members (org_id, account_id) ON DELETE SET NULL (resolved_by_id),
    CONSTRAINT detections_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT detections_severity_check CHECK (severity_rank(severity) IS NOT NULL),
    CONSTRAINT detections_origin_check CHECK (origin IN ('api', 'watcher')),
    CONSTRAINT detections_status_check CHECK (status IN ('open', 'acknowledged', 'resolved')),
    CONSTRAINT detections_resolution_check CHECK (resolution IN ('fixed', 'false-positive', 'expired')),
    CONSTRAINT detections_reason_length_check CHECK (char_length(reason) <= 2000),
    CONSTRAINT detections_count_check CHECK (count >= 1),
    CONSTRAINT detections_seen_in_order_check CHECK (first_seen_at <= last_seen_at),
    CONSTRAINT detections_acknowledged_whole_check CHECK (CASE status WHEN 'open' THEN acknowledged_at IS NULL WHEN 'acknowledged' THEN acknowledged_at IS NOT NULL ELSE true END
        AND (acknowledged_at IS NOT NULL OR acknowledged_by_id IS NULL)),
    CONSTRAINT detections_resolved_whole_check CHECK ((status = 'resolved') = (resolved_at IS NOT NULL) AND (resolved_at IS NULL) = (resolution IS NULL)
        AND (resolved_at IS NOT NULL OR resolved_by_id IS NULL)),
    CONSTRAINT detections_evidence_object_check CHECK (jsonb_typeof(evidence) = 'object'),
    CONSTRAINT detections_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE detections IS 'W21: what was found wrong with sessions. While one is not resolved, whoever finds the same again counts it up.';
COMMENT ON COLUMN detections.project_id IS 'S13: its session''s. Immutable.';
COMMENT ON COLUMN detections.origin IS 'watcher: hub found it, and resolves it when it no longer holds. api: somebody reported it, once or again.';
COMMENT ON COLUMN detections.reason IS 'Why it was resolved.';
COMMENT ON COLUMN detections.acknowledged_by_id IS 'NULL once that account has left.';
COMMENT ON COLUMN detections.resolved_by_id IS 'NULL where hub did it, and once that account has left.';
COMMENT ON COLUMN detections.evidence IS 'What it was told by, as last reported. Strings are escaped (X07).';
COMMENT ON COLUMN detections.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN detections.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT detections_session_id_fkey ON detections IS 'C14, S13. Indexed by detections_session_id_idx.';
COMMENT ON CONSTRAINT detections_anomaly_type_fkey ON detections IS 'W21: a type that is used stays.';
COMMENT ON CONSTRAINT detections_id_version_check ON detections IS 'C02';
COMMENT ON CONSTRAINT detections_metadata_check ON detections IS 'W01';

CREATE UNIQUE INDEX detections_open_key ON detections (org_id, session_id, anomaly_type) WHERE status <> 'resolved';
CREATE INDEX detections_session_id_idx ON detections (org_id, session_id, project_id, id);
CREATE INDEX detections_project_id_idx ON detections (org_id, project_id, id);
CREATE INDEX detections_anomaly_type_idx ON detections (org_id, anomaly_type, id);
CREATE INDEX detections_status_idx ON detections (org_id, status, id);
CREATE INDEX detections_severity_idx ON detections (org_id, severity, id);
CREATE INDEX detections_acknowledged_by_id_idx ON detections (org_id, acknowledged_by_id);
CREATE INDEX detections_resolved_by_id_idx ON detections (org_id, resolved_by_id);
CREATE INDEX detections_unresolved_idx ON detections (org_id, anomaly_type, id) WHERE status <> 'resolved';
COMMENT ON INDEX detections_open_key IS 'W21: the same is one detection, however often it is found.';
COMMENT ON INDEX detections_unresolved_idx IS 'W21: what the watcher looks at again.';

CREATE TRIGGER detections_touch BEFORE UPDATE ON detections
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER detections_identity_immutable BEFORE UPDATE ON detections
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.project_id, OLD.session_id, OLD.anomaly_type, OLD.first_seen_at, OLD.created_at)
        IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.project_id, NEW.session_id, NEW.anomaly_type, NEW.first_seen_at, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A detection''s organisation, id, project, session, type and beginning');
COMMENT ON TRIGGER detections_identity_immutable ON detections IS 'S13, W21';
CREATE TRIGGER detections_count_rises BEFORE UPDATE ON detections
    FOR EACH ROW WHEN (NEW.count < OLD.count OR NEW.last_seen_at < OLD.last_seen_at) EXECUTE FUNCTION refuse_change('How often something was seen, but for more,');
COMMENT ON TRIGGER detections_count_rises ON detections IS 'W21';
CREATE TRIGGER detections_resolved_final BEFORE UPDATE ON detections
    FOR EACH ROW WHEN (OLD.status = 'resolved' AND NEW.status = 'resolved'
        AND (OLD.severity, OLD.origin, OLD.resolution, OLD.reason, OLD.count, OLD.last_seen_at, OLD.acknowledged_at, OLD.resolved_at, OLD.evidence::text)
            IS DISTINCT FROM (NEW.severity, NEW.origin, NEW.resolution, NEW.reason, NEW.count, NEW.last_seen_at, NEW.acknowledged_at, NEW.resolved_at, NEW.evidence::text))
    EXECUTE FUNCTION refuse_change('What was resolved');
COMMENT ON TRIGGER detections_resolved_final ON detections IS 'W21: what comes again is another detection.';

CREATE FUNCTION check_detection_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM detection_status_transitions t WHERE (t.from_status, t.to_status) = (OLD.status, NEW.status)) THEN
        PERFORM raise_rule(TG_NAME, format('A detection that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    IF NEW.status = 'acknowledged' THEN
        NEW.acknowledged_at := clock_timestamp();
        NEW.acknowledged_by_id := current_account_id();
    ELSE
        NEW.resolved_at := clock_timestamp();
        NEW.resolved_by_id := current_account_id();
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_detection_status() IS 'X06, W21: legal steps are rows of detection_status_transitions. Each says when it was, and who took it.';
-- A status that there is not is the CHECK's to refuse.
CREATE TRIGGER detections_status_transition BEFORE UPDATE ON detections
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status AND NEW.status IN ('open', 'acknowledged', 'resolved')) EXECUTE FUNCTION check_detection_status();
COMMENT ON TRIGGER detections_status_transition ON detections IS 'X06, W21';

CREATE TRIGGER detections_record AFTER INSERT ON detections FOR EACH ROW EXECUTE FUNCTION record_row_event('detection');
CREATE TRIGGER detections_record_change AFTER UPDATE ON detections
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('detection');
CREATE TRIGGER detections_record_deleted AFTER DELETE ON detections FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION record_row_event('detection');
COMMENT ON TRIGGER detections_record_deleted ON detections IS 'X05: what goes with its session is not told of.';


-- Watch policies -------------------------------------------------------------------------------------------------

CREATE TABLE watch_policies (
    org_id                uuid        NOT NULL,
    stall_minutes         integer     DEFAULT 15,
    error_count           integer     DEFAULT 10,
    error_minutes         integer     NOT NULL DEFAULT 15,
    model_minutes         integer     DEFAULT 30,
    model_baseline_hours  integer     NOT NULL DEFAULT 24,
    model_turns           integer     NOT NULL DEFAULT 20,
    model_error_percent   integer     NOT NULL DEFAULT 25,
    model_latency_percent integer     NOT NULL DEFAULT 300,
    reported_days         integer     DEFAULT 30,
    metadata              jsonb       NOT NULL DEFAULT '{}',
    revision              integer     NOT NULL DEFAULT 1,
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT watch_policies_pkey PRIMARY KEY (org_id),
    CONSTRAINT watch_policies_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE CASCADE,
    CONSTRAINT watch_policies_stall_minutes_check CHECK (stall_minutes BETWEEN 1 AND 10080),
    CONSTRAINT watch_policies_error_count_check CHECK (error_count BETWEEN 1 AND 1000),
    CONSTRAINT watch_policies_error_minutes_check CHECK (error_minutes BETWEEN 1 AND 1440),
    CONSTRAINT watch_policies_model_minutes_check CHECK (model_minutes BETWEEN 5 AND 1440),
    CONSTRAINT watch_policies_model_baseline_hours_check CHECK (model_baseline_hours BETWEEN 1 AND 720),
    CONSTRAINT watch_policies_model_turns_check CHECK (model_turns BETWEEN 5 AND 1000),
    CONSTRAINT watch_policies_model_error_percent_check CHECK (model_error_percent BETWEEN 1 AND 100),
    CONSTRAINT watch_policies_model_latency_percent_check CHECK (model_latency_percent BETWEEN 110 AND 10000),
    CONSTRAINT watch_policies_reported_days_check CHECK (reported_days BETWEEN 1 AND 36500),
    CONSTRAINT watch_policies_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE watch_policies IS 'W21: from when on hub finds something wrong with an organisation''s sessions. Each has a row from its creation on.';
COMMENT ON COLUMN watch_policies.stall_minutes IS 'SESSION_STALL: how long nothing happens in a session that is running; NULL for not watched.';
COMMENT ON COLUMN watch_policies.error_count IS 'HIGH_ERROR_COUNT: how many failed tool calls of a session are many; NULL for not watched.';
COMMENT ON COLUMN watch_policies.error_minutes IS 'HIGH_ERROR_COUNT: of those that were begun in the last so many minutes.';
COMMENT ON COLUMN watch_policies.model_minutes IS 'MODEL_DEGRADATION: the last so many minutes are judged; NULL for not watched.';
COMMENT ON COLUMN watch_policies.model_baseline_hours IS 'MODEL_DEGRADATION: by the so many hours before those.';
COMMENT ON COLUMN watch_policies.model_turns IS 'MODEL_DEGRADATION: with fewer turns of a model in either time nothing is said of it.';
COMMENT ON COLUMN watch_policies.model_error_percent IS 'MODEL_DEGRADATION: by how many percentage points more turns fail than before.';
COMMENT ON COLUMN watch_policies.model_latency_percent IS 'MODEL_DEGRADATION: how long the median turn takes, in percent of the median before.';
COMMENT ON COLUMN watch_policies.reported_days IS 'Days after which a detection that somebody reported, and nobody again, expires; NULL for never.';
COMMENT ON COLUMN watch_policies.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN watch_policies.revision IS 'Counts changes: the ETag.';

CREATE TRIGGER watch_policies_touch BEFORE UPDATE ON watch_policies
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER watch_policies_identity_immutable BEFORE UPDATE ON watch_policies
    FOR EACH ROW WHEN ((OLD.org_id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A watch policy''s organisation and creation time');
CREATE TRIGGER watch_policies_beyond_limits BEFORE UPDATE ON watch_policies
    FOR EACH ROW WHEN (current_project_ids() IS NOT NULL) EXECUTE FUNCTION refuse_limited_key();
COMMENT ON TRIGGER watch_policies_beyond_limits ON watch_policies IS 'X01: all projects are watched by it.';
CREATE CONSTRAINT TRIGGER watch_policies_audit AFTER UPDATE ON watch_policies DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION record_audit('watch');

CREATE TABLE watch_rounds (
    org_id            uuid        NOT NULL,
    watched_at        timestamptz NOT NULL DEFAULT '-infinity',
    models_watched_at timestamptz NOT NULL DEFAULT '-infinity',
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT watch_rounds_pkey PRIMARY KEY (org_id),
    CONSTRAINT watch_rounds_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE CASCADE
);
COMMENT ON TABLE watch_rounds IS 'W21: when each organisation was last watched, so that several servers do it once.';
COMMENT ON COLUMN watch_rounds.models_watched_at IS 'When its models were: that reads more.';
CREATE TRIGGER watch_rounds_touch BEFORE UPDATE ON watch_rounds
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION set_updated_at();

CREATE FUNCTION begin_watching(p_org_id uuid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, public, pg_temp AS $$
    INSERT INTO watch_policies (org_id) VALUES (p_org_id) ON CONFLICT DO NOTHING;
    INSERT INTO watch_rounds (org_id) VALUES (p_org_id) ON CONFLICT DO NOTHING;
    INSERT INTO anomaly_types (org_id, name, severity, description, built_in) SELECT p_org_id, b.name, b.severity, b.description, true FROM built_in_anomalies b ON CONFLICT DO NOTHING;
$$;
COMMENT ON FUNCTION begin_watching(uuid) IS 'W21: what each organisation has from its creation on.';
CREATE FUNCTION watch_organization() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM begin_watching(NEW.id);
    RETURN NULL;
END $$;
COMMENT ON FUNCTION watch_organization() IS 'W21: see begin_watching().';
CREATE TRIGGER organizations_watched AFTER INSERT ON organizations
    FOR EACH ROW EXECUTE FUNCTION watch_organization();


-- The watcher ----------------------------------------------------------------------------------------------------
-- Three questions, each of which returns the sessions that it concerns, and why. Each reads through an index and no more than is recent.

CREATE FUNCTION stalled_sessions(p_org_id uuid, p_minutes integer) RETURNS TABLE (session_id uuid, evidence jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT s.id, jsonb_build_object('since', to_jsonb(greatest(s.last_activity_at, s.updated_at)), 'minutes', p_minutes)
    FROM sessions s
    WHERE s.org_id = p_org_id AND s.run_state = 'running' AND s.archived_at IS NULL AND s.deleted_at IS NULL
      AND greatest(s.last_activity_at, s.updated_at) < now() - make_interval(mins => p_minutes)
$$;
COMMENT ON FUNCTION stalled_sessions(uuid, integer) IS
    'W21, SESSION_STALL: sessions that are running (not waiting: then somebody else is slow), and in whose row nothing has moved for so many minutes: neither messages nor parts arrived, nor did its state change.';

CREATE FUNCTION failing_sessions(p_org_id uuid, p_count integer, p_minutes integer) RETURNS TABLE (session_id uuid, evidence jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT e.session_id, jsonb_build_object('failedTools', count(*) FILTER (WHERE e.tool), 'failedCalls', count(*) FILTER (WHERE NOT e.tool), 'minutes', p_minutes)
    FROM (
        (SELECT p.session_id, true AS tool FROM parts p
         WHERE p.org_id = p_org_id AND p.tool_state = 'error' AND p.id >= hub_uuidv7_floor(now() - make_interval(mins => p_minutes)) ORDER BY p.id DESC LIMIT 10000)
        UNION ALL
        (SELECT c.session_id, false FROM calls c
         WHERE c.org_id = p_org_id AND c.status = 'failed' AND c.id >= hub_uuidv7_floor(now() - make_interval(mins => p_minutes)) ORDER BY c.id DESC LIMIT 10000)
    ) e
    WHERE e.session_id IS NOT NULL
    GROUP BY e.session_id
    HAVING count(*) FILTER (WHERE e.tool) >= p_count OR count(*) FILTER (WHERE NOT e.tool) >= p_count
$$;
COMMENT ON FUNCTION failing_sessions(uuid, integer, integer) IS
    'W21, HIGH_ERROR_COUNT: sessions of whose tool calls, or of whose calls of operations, so many have failed of those that were begun in the last minutes. The two are not added up: one call may be both.';
CREATE INDEX parts_failed_idx ON parts (org_id, id) WHERE tool_state = 'error';
COMMENT ON INDEX parts_failed_idx IS 'W21: failed tool calls, by when they were begun.';

CREATE FUNCTION turn_milliseconds(p_data jsonb) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN jsonb_typeof(p_data #> '{time,created}') = 'number' AND jsonb_typeof(p_data #> '{time,completed}') = 'number'
             AND (p_data #> '{time,completed}')::numeric - (p_data #> '{time,created}')::numeric BETWEEN 0 AND 86400000
            THEN (p_data #> '{time,completed}')::numeric - (p_data #> '{time,created}')::numeric END;
COMMENT ON FUNCTION turn_milliseconds(jsonb) IS 'How long an assistant''s message took, as its client wrote it; NULL where it does not say, or what cannot be.';

CREATE FUNCTION model_turns(p_org_id uuid, p_since timestamptz, p_until timestamptz) RETURNS TABLE (session_id uuid, provider text, model text, failed boolean, milliseconds numeric)
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT t.session_id, t.provider, t.model, t.error IS NOT NULL, turn_milliseconds(t.data)
    FROM (
        SELECT m.session_id, m.data, CASE WHEN jsonb_typeof(m.data -> 'error') = 'object' THEN m.data -> 'error' END AS error,
               CASE WHEN jsonb_typeof(m.data -> 'providerID') = 'string' THEN m.data ->> 'providerID' WHEN jsonb_typeof(m.data #> '{model,providerID}') = 'string' THEN m.data #>> '{model,providerID}' ELSE '' END AS provider,
               CASE WHEN jsonb_typeof(m.data -> 'modelID') = 'string' THEN m.data ->> 'modelID' WHEN jsonb_typeof(m.data #> '{model,modelID}') = 'string' THEN m.data #>> '{model,modelID}' END AS model
        FROM (SELECT r.session_id, r.role, r.data, r.metadata FROM messages r
              WHERE r.org_id = p_org_id AND r.id >= hub_uuidv7_floor(p_since) AND r.id < hub_uuidv7_floor(p_until) ORDER BY r.id DESC LIMIT 5000) m
        WHERE m.role = 'assistant' AND NOT m.metadata ? '_fork'
    ) t
    WHERE t.model IS NOT NULL AND t.error ->> 'name' IS DISTINCT FROM 'MessageAbortedError' AND (t.error IS NOT NULL OR turn_milliseconds(t.data) IS NOT NULL)
$$;
COMMENT ON FUNCTION model_turns(uuid, timestamptz, timestamptz) IS
    'W21: the turns of models that ended, among the newest 5,000 messages of a time: assistants'' messages that name their model and either failed or say how long they took. What a person broke off says nothing of the model; copies of a fork were counted where they were made.';

CREATE FUNCTION degraded_sessions(p_org_id uuid, p_minutes integer, p_baseline_hours integer, p_turns integer, p_error_percent integer, p_latency_percent integer)
RETURNS TABLE (session_id uuid, evidence jsonb)
LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
    WITH recent AS MATERIALIZED (
        SELECT * FROM model_turns(p_org_id, now() - make_interval(mins => p_minutes), now() + interval '1 hour')
    ), late AS (
        SELECT r.provider, r.model, count(*) AS turns, count(*) FILTER (WHERE r.failed) AS failed, percentile_cont(0.5) WITHIN GROUP (ORDER BY r.milliseconds::float8) FILTER (WHERE NOT r.failed) AS median
        FROM recent r GROUP BY r.provider, r.model HAVING count(*) >= p_turns
    ), before AS (
        SELECT b.provider, b.model, count(*) AS turns, count(*) FILTER (WHERE b.failed) AS failed, percentile_cont(0.5) WITHIN GROUP (ORDER BY b.milliseconds::float8) FILTER (WHERE NOT b.failed) AS median
        FROM model_turns(p_org_id, now() - make_interval(mins => p_minutes, hours => p_baseline_hours), now() - make_interval(mins => p_minutes)) b
        WHERE EXISTS (SELECT FROM late)
        GROUP BY b.provider, b.model HAVING count(*) >= p_turns
    ), degraded AS (
        SELECT l.provider, l.model, b.median AS baseline,
               100.0 * l.failed / l.turns >= 100.0 * b.failed / b.turns + p_error_percent AS fails, coalesce(b.median > 0 AND l.median >= b.median * p_latency_percent / 100, false) AS slow,
               jsonb_build_object('provider', l.provider, 'model', l.model, 'minutes', p_minutes, 'turns', l.turns, 'failed', l.failed, 'medianMilliseconds', round(l.median),
                                  'before', jsonb_build_object('hours', p_baseline_hours, 'turns', b.turns, 'failed', b.failed, 'medianMilliseconds', round(b.median))) AS evidence
        FROM late l JOIN before b ON (b.provider, b.model) = (l.provider, l.model)
    )
    SELECT DISTINCT ON (r.session_id) r.session_id, d.evidence
    FROM recent r JOIN degraded d ON (d.provider, d.model) = (r.provider, r.model)
    WHERE d.fails AND r.failed OR d.slow AND NOT r.failed AND r.milliseconds >= d.baseline * p_latency_percent / 100
    ORDER BY r.session_id, d.model, d.provider
$$;
COMMENT ON FUNCTION degraded_sessions(uuid, integer, integer, integer, integer, integer) IS
    'W21, MODEL_DEGRADATION: a model is degraded when of its turns in the last minutes so many percentage points more failed than in the hours before, or the median of those that did not took so many percent of the median before; and there were enough turns in both. The sessions are those that noticed: one of their turns failed, or was that slow.';

CREATE FUNCTION settle_detections(p_org_id uuid, p_anomaly_type text, p_session_ids uuid[], p_evidence jsonb[], p_rows integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    c_again  constant interval := '10 minutes';
    v_raised bigint;
    v_ended  bigint;
BEGIN
    WITH held AS (
        SELECT s.org_id, s.project_id, s.id, u.evidence
        FROM unnest(p_session_ids, p_evidence) u(id, evidence) JOIN sessions s ON s.org_id = p_org_id AND s.id = u.id
        WHERE s.run_state <> 'ended' AND s.archived_at IS NULL AND s.deleted_at IS NULL
          AND NOT EXISTS (
              SELECT FROM detections d WHERE d.org_id = p_org_id AND d.session_id = u.id AND d.anomaly_type = p_anomaly_type
                AND CASE WHEN d.status <> 'resolved' THEN d.last_seen_at > now() - c_again
                         ELSE d.resolution = 'false-positive' OR d.resolution = 'fixed' AND d.resolved_at > now() - c_again END)
        ORDER BY s.id LIMIT p_rows
        FOR KEY SHARE OF s SKIP LOCKED -- who is being deleted needs no detection
    )
    INSERT INTO detections AS d (org_id, project_id, session_id, anomaly_type, severity, origin, evidence)
    SELECT h.org_id, h.project_id, h.id, a.name, a.severity, 'watcher', h.evidence FROM held h JOIN anomaly_types a ON a.org_id = h.org_id AND a.name = p_anomaly_type ORDER BY h.id
    ON CONFLICT (org_id, session_id, anomaly_type) WHERE status <> 'resolved'
    DO UPDATE SET count = d.count + 1, last_seen_at = greatest(d.last_seen_at, clock_timestamp()), evidence = excluded.evidence;
    GET DIAGNOSTICS v_raised = ROW_COUNT;
    UPDATE detections d SET status = 'resolved', resolution = 'expired', reason = 'It no longer holds.'
    WHERE d.org_id = p_org_id AND d.id IN (
        SELECT x.id FROM detections x
        WHERE x.org_id = p_org_id AND x.anomaly_type = p_anomaly_type AND x.status <> 'resolved' AND x.origin = 'watcher'
          AND (x.session_id <> ALL (coalesce(p_session_ids, '{}')) OR EXISTS (
              SELECT FROM sessions s WHERE s.org_id = p_org_id AND s.id = x.session_id AND (s.run_state = 'ended' OR s.archived_at IS NOT NULL OR s.deleted_at IS NOT NULL)))
        ORDER BY x.id LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED);
    GET DIAGNOSTICS v_ended = ROW_COUNT;
    RETURN v_raised + v_ended;
END $$;
COMMENT ON FUNCTION settle_detections(uuid, text, uuid[], jsonb[], integer) IS
    'W21: raises what the watcher has found in these sessions, counts up what is open (every ten minutes), and resolves as expired what it had found in others. What somebody has called a false positive is not raised again in that session; what is said to be fixed, when it still holds ten minutes later.';

CREATE FUNCTION watch_sessions(p_rows integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_round    watch_rounds;
    v_policy   watch_policies;
    v_sessions uuid[];
    v_evidence jsonb[];
    v_count    bigint;
    v_total    bigint := 0;
BEGIN
    PERFORM set_config('hub.actor_source', 'worker', true);
    FOR v_round IN
        SELECT r.* FROM watch_rounds r JOIN organizations o ON o.id = r.org_id AND o.deleted_at IS NULL
        WHERE r.watched_at < now() - interval '50 seconds' ORDER BY r.watched_at LIMIT p_rows FOR NO KEY UPDATE OF r SKIP LOCKED
    LOOP
        SELECT * INTO v_policy FROM watch_policies p WHERE p.org_id = v_round.org_id;

        SELECT array_agg(f.session_id), array_agg(f.evidence) INTO v_sessions, v_evidence FROM stalled_sessions(v_round.org_id, v_policy.stall_minutes) f;
        v_total := v_total + settle_detections(v_round.org_id, 'SESSION_STALL', v_sessions, v_evidence, p_rows);

        SELECT array_agg(f.session_id), array_agg(f.evidence) INTO v_sessions, v_evidence FROM failing_sessions(v_round.org_id, v_policy.error_count, v_policy.error_minutes) f;
        v_total := v_total + settle_detections(v_round.org_id, 'HIGH_ERROR_COUNT', v_sessions, v_evidence, p_rows);

        IF v_round.models_watched_at < now() - interval '5 minutes' THEN
            SELECT array_agg(f.session_id), array_agg(f.evidence) INTO v_sessions, v_evidence
            FROM degraded_sessions(v_round.org_id, v_policy.model_minutes, v_policy.model_baseline_hours, v_policy.model_turns, v_policy.model_error_percent, v_policy.model_latency_percent) f;
            v_total := v_total + settle_detections(v_round.org_id, 'MODEL_DEGRADATION', v_sessions, v_evidence, p_rows);
            v_round.models_watched_at := now();
        END IF;

        UPDATE detections d SET status = 'resolved', resolution = 'expired', reason = 'Nobody has seen it again.'
        WHERE d.org_id = v_round.org_id AND d.id IN (
            SELECT x.id FROM detections x
            WHERE x.org_id = v_round.org_id AND x.status <> 'resolved' AND x.origin = 'api' AND x.last_seen_at < now() - make_interval(days => v_policy.reported_days)
            ORDER BY x.anomaly_type, x.id LIMIT p_rows FOR NO KEY UPDATE SKIP LOCKED);
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_total := v_total + v_count;

        UPDATE watch_rounds r SET watched_at = now(), models_watched_at = v_round.models_watched_at WHERE r.org_id = v_round.org_id;
        EXIT WHEN v_total >= p_rows;
    END LOOP;
    RETURN v_total;
END $$;
COMMENT ON FUNCTION watch_sessions(integer) IS
    'W21: watches up to so many organisations that were not watched for a minute, those that wait longest first, and raises, counts up and expires so many detections in each. Returns how many those were. Several servers may do so at once: each organisation is watched by one.';


-- Who may see and do what ----------------------------------------------------------------------------------------

ALTER TABLE anomaly_types ENABLE ROW LEVEL SECURITY;
ALTER TABLE anomaly_types FORCE ROW LEVEL SECURITY;
ALTER TABLE detections ENABLE ROW LEVEL SECURITY;
ALTER TABLE detections FORCE ROW LEVEL SECURITY;
ALTER TABLE watch_policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE watch_policies FORCE ROW LEVEL SECURITY;
ALTER TABLE watch_rounds ENABLE ROW LEVEL SECURITY;
ALTER TABLE watch_rounds FORCE ROW LEVEL SECURITY;

CREATE POLICY anomaly_types_tenant ON anomaly_types TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY detections_tenant ON detections TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY watch_policies_tenant ON watch_policies TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY watch_rounds_tenant ON watch_rounds TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY detections_limited ON detections AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE project_id = ANY ((SELECT current_project_ids())::uuid[]) END);
CREATE POLICY detections_undeleted ON detections AS RESTRICTIVE TO hub_app USING (session_id <> ALL ((SELECT deleted_session_ids())::uuid[]));
CREATE POLICY anomaly_types_bookkeeping ON anomaly_types TO hub_system USING (true);
CREATE POLICY detections_bookkeeping ON detections TO hub_system USING (true);
CREATE POLICY watch_policies_bookkeeping ON watch_policies TO hub_system USING (true);
CREATE POLICY watch_rounds_bookkeeping ON watch_rounds TO hub_system USING (true);

GRANT SELECT ON built_in_anomalies, detection_status_transitions TO hub_app, hub_system;
GRANT SELECT, DELETE ON anomaly_types TO hub_app;
GRANT INSERT (org_id, name, severity, description, metadata), UPDATE (severity, description, metadata) ON anomaly_types TO hub_app;
GRANT SELECT ON detections, watch_policies, watch_rounds TO hub_app;
GRANT INSERT (org_id, project_id, session_id, anomaly_type, severity, evidence, metadata),
      UPDATE (severity, origin, status, resolution, reason, count, last_seen_at, evidence, metadata) ON detections TO hub_app;
GRANT UPDATE (stall_minutes, error_count, error_minutes, model_minutes, model_baseline_hours, model_turns, model_error_percent, model_latency_percent, reported_days, metadata) ON watch_policies TO hub_app;
GRANT SELECT, INSERT, DELETE ON anomaly_types, detections, watch_policies, watch_rounds TO hub_system;
GRANT UPDATE (status, resolution, reason, count, last_seen_at, evidence) ON detections TO hub_system;
GRANT UPDATE (watched_at, models_watched_at) ON watch_rounds TO hub_system;

REVOKE ALL ON FUNCTION watch_organization(), watch_sessions(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION watch_sessions(integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION watch_organization() OWNER TO hub_system;
ALTER FUNCTION watch_sessions(integer) OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;

-- For organisations that were there before.
SET LOCAL ROLE hub_system;
SELECT begin_watching(o.id) FROM organizations o;
RESET ROLE;
