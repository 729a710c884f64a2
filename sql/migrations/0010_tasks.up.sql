-- Tasks: what there is to do, what must come before what, and what became of it.

-- S15: the categories of the taskgraph format, in ascending order. NULL is "not yet assessed", which is no category.
CREATE TYPE task_status   AS ENUM ('pending', 'in-progress', 'completed', 'failed', 'blocked');
CREATE TYPE task_scope    AS ENUM ('single', 'narrow', 'moderate', 'broad', 'system');
CREATE TYPE task_risk     AS ENUM ('trivial', 'low', 'medium', 'high', 'critical');
CREATE TYPE task_impact   AS ENUM ('isolated', 'component', 'phase', 'project');
CREATE TYPE task_level    AS ENUM ('planning', 'decomposition', 'implementation', 'review', 'research');
CREATE TYPE task_priority AS ENUM ('low', 'medium', 'high', 'critical');

CREATE TABLE task_status_transitions (
    from_status task_status NOT NULL,
    to_status   task_status NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_status_transitions_pkey PRIMARY KEY (from_status, to_status)
);
COMMENT ON TABLE task_status_transitions IS 'X06: which status of a task may follow which.';
INSERT INTO task_status_transitions (from_status, to_status) VALUES
    ('pending', 'in-progress'), ('pending', 'blocked'),
    ('in-progress', 'completed'), ('in-progress', 'failed'), ('in-progress', 'blocked'), ('in-progress', 'pending'),
    ('blocked', 'pending'), ('completed', 'pending'), ('failed', 'pending');


-- Tasks ----------------------------------------------------------------------------------------------------------
-- C07: what is authored (in a file or through the API) hub_app may write. What happens at run time (status, its times, the counts)
-- it may not: that is for the triggers below and of the next migration, which belong to hub_system.

CREATE TABLE tasks (
    org_id           uuid        NOT NULL,
    id               uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id       uuid        NOT NULL,
    slug             text        COLLATE "C" NOT NULL,
    name             text        NOT NULL,
    path             text        COLLATE "C" NOT NULL,
    scope            task_scope,
    risk             task_risk,
    impact           task_impact,
    level            task_level,
    priority         task_priority,
    tags             text[]      NOT NULL DEFAULT '{}',
    assignee         text,
    due              text,
    body             text        NOT NULL DEFAULT '',
    file_created_at  timestamptz,
    file_modified_at timestamptz,
    frontmatter      text,
    base             jsonb,
    archived_at      timestamptz,
    status           task_status NOT NULL DEFAULT 'pending',
    started_at       timestamptz,
    completed_at     timestamptz,
    unmet_count      integer     NOT NULL DEFAULT 0,
    failed_count     integer     NOT NULL DEFAULT 0,
    downstream_count integer     NOT NULL DEFAULT 0,
    priority_rank    integer     NOT NULL GENERATED ALWAYS AS (CASE priority WHEN 'critical' THEN 4 WHEN 'high' THEN 3 WHEN 'low' THEN 1 ELSE 2 END) STORED,
    metadata         jsonb       NOT NULL DEFAULT '{}',
    revision         integer     NOT NULL DEFAULT 1,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tasks_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT tasks_slug_key UNIQUE (org_id, project_id, slug),
    CONSTRAINT tasks_project_id_fkey FOREIGN KEY (org_id, project_id) REFERENCES projects (org_id, id) ON DELETE RESTRICT,
    CONSTRAINT tasks_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT tasks_slug_shape_check CHECK (octet_length(slug) <= 500 AND slug ~ '^[^[:cntrl:][:space:]]([^[:cntrl:]]*[^[:cntrl:][:space:]])?$'),
    CONSTRAINT tasks_name_length_check CHECK (char_length(name) BETWEEN 1 AND 1000),
    CONSTRAINT tasks_path_shape_check CHECK (octet_length(path) BETWEEN 1 AND 1000 AND path !~ '(^/|\\|[[:cntrl:]]|(^|/)\.{0,2}(/|$))'),
    CONSTRAINT tasks_tags_shape_check CHECK (cardinality(tags) <= 100 AND array_position(tags, NULL) IS NULL AND octet_length(array_to_string(tags, '')) <= 10000),
    CONSTRAINT tasks_assignee_length_check CHECK (char_length(assignee) BETWEEN 1 AND 200),
    CONSTRAINT tasks_due_length_check CHECK (char_length(due) BETWEEN 1 AND 200),
    CONSTRAINT tasks_body_length_check CHECK (octet_length(body) <= 1048576),
    CONSTRAINT tasks_frontmatter_length_check CHECK (octet_length(frontmatter) <= 65536),
    CONSTRAINT tasks_base_whole_check CHECK ((frontmatter IS NULL) = (base IS NULL)),
    CONSTRAINT tasks_finished_has_time_check CHECK ((status IN ('completed', 'failed')) = (completed_at IS NOT NULL)),
    CONSTRAINT tasks_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE tasks IS 'What there is to do in a project, in the terms of the taskgraph format.';
COMMENT ON COLUMN tasks.slug IS 'The id that task files and people use, unique in the project; / occurs in it.';
COMMENT ON COLUMN tasks.path IS 'W17: the file''s path below the synced folder, whose prefixes group tasks. In "C", so that ^@ uses the index in every locale.';
COMMENT ON COLUMN tasks.priority IS 'What is not assessed ranks as medium.';
COMMENT ON COLUMN tasks.due IS 'Free text, as in the file.';
COMMENT ON COLUMN tasks.body IS 'Markdown. Notes are not in it (C08): see task_documents.';
COMMENT ON COLUMN tasks.frontmatter IS 'What the file of the last sync had between its --- lines, to the letter: a pull writes it back where nothing changed. NULL for a task without a file.';
COMMENT ON COLUMN tasks.base IS 'The authored fields as the last sync left them: what changed since on either side is told by it.';
COMMENT ON COLUMN tasks.archived_at IS 'When the task was put aside; NULL while it is in use. It counts for nothing then: neither ready, nor in anybody''s way.';
COMMENT ON COLUMN tasks.status IS 'C07: runtime. W11: in-progress exactly while there is one active assignment.';
COMMENT ON COLUMN tasks.started_at IS 'When it last became in-progress.';
COMMENT ON COLUMN tasks.completed_at IS 'When it was completed, or failed.';
COMMENT ON COLUMN tasks.unmet_count IS 'X04: prerequisites that are not completed. A pending task is ready when there are none.';
COMMENT ON COLUMN tasks.failed_count IS 'X04: prerequisites that failed: why it will not become ready by itself.';
COMMENT ON COLUMN tasks.downstream_count IS 'X04: tasks that wait for this one, directly or through others.';
COMMENT ON COLUMN tasks.priority_rank IS 'X04: what the ready set is ordered by: 4 critical, 3 high, 2 medium or not assessed, 1 low.';
COMMENT ON COLUMN tasks.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN tasks.revision IS 'Counts changes of everything but the counts: the ETag.';
COMMENT ON CONSTRAINT tasks_project_id_fkey ON tasks IS 'S13. Indexed by tasks_project_id_id_key.';
COMMENT ON CONSTRAINT tasks_id_version_check ON tasks IS 'C02';
COMMENT ON CONSTRAINT tasks_metadata_check ON tasks IS 'W01';

CREATE INDEX tasks_path_idx ON tasks (org_id, project_id, path, slug);
CREATE INDEX tasks_ready_idx ON tasks (org_id, project_id, priority_rank DESC, downstream_count DESC, id)
    WHERE status = 'pending' AND unmet_count = 0 AND archived_at IS NULL;
-- After the other indexes: where PostgreSQL has no statistics yet, as within a large sync, it takes the newest of those that seem equal for
-- the look-ups of foreign keys, and any other one would be read through for each row.
ALTER TABLE tasks ADD CONSTRAINT tasks_project_id_id_key UNIQUE (org_id, project_id, id);
COMMENT ON CONSTRAINT tasks_project_id_id_key ON tasks IS 'C09, S13: what dependencies, notes and mappings refer to, so that a task''s project is theirs.';
COMMENT ON INDEX tasks_path_idx IS 'W17';
COMMENT ON INDEX tasks_ready_idx IS 'X04: the ready set, in the order in which it is claimed. The status stands in the predicate: under row-level security enum equality uses no index.';

CREATE TRIGGER tasks_touch BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN ((OLD.slug, OLD.name, OLD.path, OLD.scope, OLD.risk, OLD.impact, OLD.level, OLD.priority, OLD.tags, OLD.assignee, OLD.due, OLD.body, OLD.file_created_at,
                        OLD.file_modified_at, OLD.frontmatter, OLD.base, OLD.archived_at, OLD.status, OLD.started_at, OLD.completed_at, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.slug, NEW.name, NEW.path, NEW.scope, NEW.risk, NEW.impact, NEW.level, NEW.priority, NEW.tags, NEW.assignee, NEW.due, NEW.body, NEW.file_created_at,
                        NEW.file_modified_at, NEW.frontmatter, NEW.base, NEW.archived_at, NEW.status, NEW.started_at, NEW.completed_at, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();
-- Its name comes after tasks_touch's, which would take the new updated_at for a change.
CREATE TRIGGER tasks_touch_counts BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN ((OLD.unmet_count, OLD.failed_count, OLD.downstream_count) IS DISTINCT FROM (NEW.unmet_count, NEW.failed_count, NEW.downstream_count))
    EXECUTE FUNCTION set_updated_at();
COMMENT ON TRIGGER tasks_touch_counts ON tasks IS 'W22: what others'' work does to a task moves updated_at, but is no new revision.';
CREATE TRIGGER tasks_identity_immutable BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.project_id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.project_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A task''s organisation, id, project and creation time');
COMMENT ON TRIGGER tasks_identity_immutable ON tasks IS 'S13';

CREATE FUNCTION check_new_task_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status = 'in-progress' THEN
        PERFORM public.raise_rule(TG_NAME, 'A task is in progress once somebody claims it, not from the start.');
    END IF;
    NEW.started_at := NULL;
    NEW.completed_at := CASE WHEN NEW.status IN ('completed', 'failed') THEN coalesce(NEW.file_modified_at, now()) END;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_new_task_status() IS 'C07: a new task may take completed, failed or blocked from its file, never afterwards.';
CREATE TRIGGER tasks_new_status BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION check_new_task_status();
COMMENT ON TRIGGER tasks_new_status ON tasks IS 'C07';

CREATE FUNCTION check_task_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM task_status_transitions t WHERE t.from_status = OLD.status AND t.to_status = NEW.status) THEN
        PERFORM raise_rule(TG_NAME, format('A task that is %s cannot become %s.', OLD.status, NEW.status));
    END IF;
    NEW.started_at := CASE WHEN NEW.status = 'in-progress' THEN clock_timestamp() WHEN NEW.status = 'pending' THEN NULL ELSE OLD.started_at END;
    NEW.completed_at := CASE WHEN NEW.status IN ('completed', 'failed') THEN clock_timestamp() END;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION check_task_status() IS 'X06: legal steps are rows of task_status_transitions. The times follow the status.';
CREATE TRIGGER tasks_status_transition BEFORE UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION check_task_status();
COMMENT ON TRIGGER tasks_status_transition ON tasks IS 'X06';


-- Who moved it, when and why -------------------------------------------------------------------------------------

CREATE TABLE task_status_changes (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id  uuid        NOT NULL,
    task_id     uuid        NOT NULL,
    from_status task_status NOT NULL,
    to_status   task_status NOT NULL,
    reason      text        NOT NULL DEFAULT '',
    account_id  uuid,
    session_id  uuid,
    mapping_id  uuid,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_status_changes_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT task_status_changes_task_id_fkey FOREIGN KEY (org_id, project_id, task_id) REFERENCES tasks (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT task_status_changes_id_version_check CHECK (is_uuidv7(id))
);
COMMENT ON TABLE task_status_changes IS 'The history of tasks, written by a trigger and never changed. Its ids of accounts, sessions and mappings are snapshots: those may be gone.';
COMMENT ON COLUMN task_status_changes.account_id IS 'Who was signed in; NULL for hub itself, as when a lease expires.';
COMMENT ON COLUMN task_status_changes.session_id IS 'The session whose assignment it was, else the one in which the caller acted.';
CREATE INDEX task_status_changes_task_id_idx ON task_status_changes (org_id, project_id, task_id, id);
CREATE TRIGGER task_status_changes_append_only BEFORE UPDATE OR DELETE ON task_status_changes
    FOR EACH ROW WHEN (NOT is_deleted_organization(OLD.org_id)) EXECUTE FUNCTION refuse_unless_cascade('tasks', 'org_id', 'task_id');

CREATE FUNCTION record_task_status() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_unmet  integer := (NEW.status <> 'completed')::integer - (OLD.status <> 'completed')::integer;
    v_failed integer := (NEW.status = 'failed')::integer - (OLD.status = 'failed')::integer;
BEGIN
    INSERT INTO task_status_changes (org_id, project_id, task_id, from_status, to_status, reason, account_id, session_id, mapping_id, created_at)
    VALUES (NEW.org_id, NEW.project_id, NEW.id, OLD.status, NEW.status, coalesce(current_setting('hub.task_reason', true), ''), current_account_id(),
            coalesce(nullif(current_setting('hub.task_session_id', true), '')::uuid, current_session_id()), nullif(current_setting('hub.task_mapping_id', true), '')::uuid, clock_timestamp());
    IF (v_unmet, v_failed) <> (0, 0) AND NEW.archived_at IS NULL THEN
        -- Whoever adds a dependency on this task meanwhile waits here, and then counts it as it is.
        PERFORM FROM projects p WHERE (p.org_id, p.id) = (NEW.org_id, NEW.project_id) FOR NO KEY UPDATE;
        UPDATE tasks t SET unmet_count = t.unmet_count + v_unmet, failed_count = t.failed_count + v_failed
        FROM task_dependencies d
        WHERE (d.org_id, d.project_id, d.depends_on_task_id) = (NEW.org_id, NEW.project_id, NEW.id) AND (t.org_id, t.id) = (d.org_id, d.dependent_task_id);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_task_status() IS 'Writes the history, and tells the tasks that wait for this one (X04).';
CREATE TRIGGER tasks_status_recorded AFTER UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION record_task_status();


-- Dependencies (C09, S16) ----------------------------------------------------------------------------------------

CREATE TABLE task_dependencies (
    org_id             uuid        NOT NULL,
    id                 uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id         uuid        NOT NULL,
    dependent_task_id  uuid        NOT NULL,
    depends_on_task_id uuid        NOT NULL,
    created_at         timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_dependencies_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT task_dependencies_edge_key UNIQUE (org_id, project_id, dependent_task_id, depends_on_task_id),
    CONSTRAINT task_dependencies_dependent_task_id_fkey FOREIGN KEY (org_id, project_id, dependent_task_id) REFERENCES tasks (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT task_dependencies_depends_on_task_id_fkey FOREIGN KEY (org_id, project_id, depends_on_task_id) REFERENCES tasks (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT task_dependencies_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT task_dependencies_not_on_itself_check CHECK (dependent_task_id <> depends_on_task_id)
);
COMMENT ON TABLE task_dependencies IS 'What must be completed before what. Added and removed, never changed.';
COMMENT ON COLUMN task_dependencies.dependent_task_id IS 'S16: the task that waits.';
COMMENT ON COLUMN task_dependencies.depends_on_task_id IS 'S16: its prerequisite.';
COMMENT ON CONSTRAINT task_dependencies_dependent_task_id_fkey ON task_dependencies IS 'C09: both ends are tasks of this project.';
COMMENT ON CONSTRAINT task_dependencies_depends_on_task_id_fkey ON task_dependencies IS 'C09';
COMMENT ON CONSTRAINT task_dependencies_not_on_itself_check ON task_dependencies IS 'C09';
CREATE INDEX task_dependencies_depends_on_task_id_idx ON task_dependencies (org_id, project_id, depends_on_task_id);

ALTER TABLE projects ADD COLUMN graph_version integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN projects.graph_version IS 'C09: counts changes of the dependencies between its tasks. Their writers queue for it.';
DROP TRIGGER projects_touch ON projects;
CREATE TRIGGER projects_touch BEFORE UPDATE ON projects
    FOR EACH ROW WHEN ((OLD.slug, OLD.name, OLD.description, OLD.archived_at, OLD.data::text, OLD.metadata::text, OLD.revision, OLD.updated_at)
        IS DISTINCT FROM (NEW.slug, NEW.name, NEW.description, NEW.archived_at, NEW.data::text, NEW.metadata::text, NEW.revision, NEW.updated_at))
    EXECUTE FUNCTION touch_row();
CREATE TRIGGER projects_touch_graph BEFORE UPDATE ON projects
    FOR EACH ROW WHEN (OLD.graph_version IS DISTINCT FROM NEW.graph_version) EXECUTE FUNCTION set_updated_at();
COMMENT ON TRIGGER projects_touch_graph ON projects IS 'W22: a dependency moves updated_at, but is no new revision of the project.';

-- Without nested loops: right after a large sync PostgreSQL thinks that there are few rows, and would join 10,000 with 10,000 one by one.
CREATE FUNCTION refresh_task_graph(p_org_id uuid, p_project_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET enable_nestloop = off AS $$
DECLARE
    c_block constant integer := 16384; -- bits of a set of tasks: what bounds the memory of a large graph
    v_ids      uuid[];                 -- the tasks that have an edge; what follows numbers them from 1
    v_targets  integer[];              -- the dependents of the first task, of the second, ...
    v_heads    integer[];              -- where each task's begin
    v_waiting  integer[];              -- prerequisites that were not passed yet
    v_order    integer[];              -- prerequisites first
    v_below    bit varying[];          -- of each task: itself and all that wait for it
    v_counts   integer[];
    v_n        integer;
    v_done     integer := 0;
    v_length   integer;
    v_task     integer;
    v_set      bit varying;
BEGIN
    -- First of all: of two writers who would each add one half of a circle the second waits here, and then sees the first one's half.
    UPDATE projects p SET graph_version = p.graph_version + 1 WHERE (p.org_id, p.id) = (p_org_id, p_project_id);

    WITH edge AS (
        SELECT d.depends_on_task_id AS source, d.dependent_task_id AS target
        FROM task_dependencies d
        JOIN tasks s ON s.id = d.depends_on_task_id
        JOIN tasks t ON t.id = d.dependent_task_id
        WHERE (d.org_id, d.project_id) = (p_org_id, p_project_id)
          AND (s.org_id, s.project_id) = (p_org_id, p_project_id) AND s.archived_at IS NULL AND (t.org_id, t.project_id) = (p_org_id, p_project_id) AND t.archived_at IS NULL
    ), node AS (
        SELECT n.id, row_number() OVER (ORDER BY n.id)::integer AS n FROM (SELECT e.source AS id FROM edge e UNION SELECT e.target FROM edge e) n
    ), numbered AS (
        SELECT s.n AS source, t.n AS target FROM edge e JOIN node s ON s.id = e.source JOIN node t ON t.id = e.target
    ), outgoing AS (
        SELECT n.n, n.id, coalesce(o.n_out, 0) AS n_out, coalesce(i.n_in, 0)::integer AS n_in
        FROM node n
        LEFT JOIN (SELECT e.source, count(*) AS n_out FROM numbered e GROUP BY 1) o ON o.source = n.n
        LEFT JOIN (SELECT e.target, count(*) AS n_in FROM numbered e GROUP BY 1) i ON i.target = n.n
    ), placed AS (
        SELECT o.*, (1 + sum(o.n_out) OVER (ORDER BY o.n) - o.n_out)::integer AS head FROM outgoing o
    )
    SELECT array_agg(p.id ORDER BY p.n), array_agg(p.head ORDER BY p.n), array_agg(p.n_in ORDER BY p.n),
           array_agg(p.n ORDER BY p.n) FILTER (WHERE p.n_in = 0), (SELECT array_agg(e.target ORDER BY e.source) FROM numbered e)
    INTO v_ids, v_heads, v_waiting, v_order, v_targets
    FROM placed p;
    v_n := coalesce(cardinality(v_ids), 0);

    IF v_n > 0 THEN
        v_heads[v_n + 1] := cardinality(v_targets) + 1;
        v_length := coalesce(cardinality(v_order), 0);
        WHILE v_done < v_length LOOP
            v_done := v_done + 1;
            v_task := v_order[v_done];
            FOR k IN v_heads[v_task] .. v_heads[v_task + 1] - 1 LOOP
                v_waiting[v_targets[k]] := v_waiting[v_targets[k]] - 1;
                IF v_waiting[v_targets[k]] = 0 THEN
                    v_length := v_length + 1;
                    v_order[v_length] := v_targets[k];
                END IF;
            END LOOP;
        END LOOP;
        IF v_done < v_n THEN
            PERFORM raise_rule('task_dependencies_acyclic', 'The tasks would wait for each other in a circle.');
        END IF;

        v_counts := array_fill(0, ARRAY[v_n]);
        FOR v_first IN 0 .. v_n - 1 BY c_block LOOP
            v_length := least(c_block, v_n - v_first);
            v_below := array_fill(NULL::bit varying, ARRAY[v_n]);
            FOR i IN REVERSE v_n .. 1 LOOP
                v_task := v_order[i];
                v_set := repeat('0', v_length)::bit varying;
                FOR k IN v_heads[v_task] .. v_heads[v_task + 1] - 1 LOOP
                    v_set := v_set | v_below[v_targets[k]];
                END LOOP;
                v_counts[v_task] := v_counts[v_task] + bit_count(v_set);
                IF v_task > v_first AND v_task <= v_first + v_length THEN
                    v_set := set_bit(v_set, v_task - v_first - 1, 1);
                END IF;
                v_below[v_task] := v_set;
            END LOOP;
        END LOOP;
    END IF;

    UPDATE tasks t SET unmet_count = c.unmet, failed_count = c.failed, downstream_count = c.downstream
    FROM (
        SELECT a.id, coalesce(e.unmet, 0) AS unmet, coalesce(e.failed, 0) AS failed, coalesce(n.downstream, 0) AS downstream
        FROM tasks a
        LEFT JOIN (SELECT d.dependent_task_id, count(*) FILTER (WHERE s.status <> 'completed') AS unmet, count(*) FILTER (WHERE s.status = 'failed') AS failed
                   FROM task_dependencies d JOIN tasks s ON s.id = d.depends_on_task_id
                   WHERE (d.org_id, d.project_id) = (p_org_id, p_project_id) AND (s.org_id, s.project_id) = (p_org_id, p_project_id) AND s.archived_at IS NULL GROUP BY 1) e ON e.dependent_task_id = a.id
        LEFT JOIN unnest(v_ids, v_counts) n(id, downstream) ON n.id = a.id
        WHERE (a.org_id, a.project_id) = (p_org_id, p_project_id)) c
    WHERE (t.org_id, t.project_id) = (p_org_id, p_project_id) AND t.id = c.id AND (t.unmet_count, t.failed_count, t.downstream_count) IS DISTINCT FROM (c.unmet, c.failed, c.downstream);
END $$;
COMMENT ON FUNCTION refresh_task_graph(uuid, uuid) IS
    'C09, X04: after a statement that changed a project''s dependencies, or archived tasks: refuses a circle, and counts anew what each task waits for and what waits for it. One walk per statement; sets of tasks are strings of bits.';

CREATE FUNCTION refresh_changed_task_graphs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM refresh_task_graph(c.org_id, c.project_id) FROM (SELECT DISTINCT r.org_id, r.project_id FROM changed r ORDER BY 1, 2) c;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION refresh_changed_task_graphs() IS 'C09: refresh_task_graph for the projects of the rows that a statement added or removed.';
CREATE TRIGGER task_dependencies_added AFTER INSERT ON task_dependencies
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION refresh_changed_task_graphs();
COMMENT ON TRIGGER task_dependencies_added ON task_dependencies IS 'C09';
CREATE TRIGGER task_dependencies_removed AFTER DELETE ON task_dependencies
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION refresh_changed_task_graphs();

CREATE FUNCTION refresh_archived_task_graphs() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    PERFORM refresh_task_graph(c.org_id, c.project_id)
    FROM (SELECT DISTINCT n.org_id, n.project_id FROM after_change n JOIN before_change o ON (o.org_id, o.id) = (n.org_id, n.id)
          WHERE (o.archived_at IS NULL) <> (n.archived_at IS NULL) ORDER BY 1, 2) c;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION refresh_archived_task_graphs() IS 'C09: refresh_task_graph for the projects whose tasks a statement put aside or took up again.';
CREATE TRIGGER tasks_archived AFTER UPDATE ON tasks
    REFERENCING OLD TABLE AS before_change NEW TABLE AS after_change FOR EACH STATEMENT EXECUTE FUNCTION refresh_archived_task_graphs();


-- Notes (C08) ----------------------------------------------------------------------------------------------------

CREATE TABLE task_notes (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id uuid        NOT NULL,
    task_id    uuid        NOT NULL,
    account_id uuid,
    session_id uuid,
    body       text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT task_notes_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT task_notes_task_id_fkey FOREIGN KEY (org_id, project_id, task_id) REFERENCES tasks (org_id, project_id, id) ON DELETE CASCADE,
    CONSTRAINT task_notes_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT task_notes_body_length_check CHECK (octet_length(body) BETWEEN 1 AND 65536)
);
COMMENT ON TABLE task_notes IS 'C08: what agents note on a task: rows that are only added, so that two writers cannot collide and a sync of the body cannot eat one.';
COMMENT ON COLUMN task_notes.account_id IS 'Who wrote it, and session_id the session in which: snapshots, both may be gone.';
CREATE INDEX task_notes_task_id_idx ON task_notes (org_id, project_id, task_id, id);
CREATE TRIGGER task_notes_append_only BEFORE UPDATE OR DELETE ON task_notes
    FOR EACH ROW WHEN (NOT is_deleted_organization(OLD.org_id)) EXECUTE FUNCTION refuse_unless_cascade('tasks', 'org_id', 'task_id');
COMMENT ON TRIGGER task_notes_append_only ON task_notes IS 'C08';

CREATE FUNCTION sign_task_note() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_last uuid;
BEGIN
    PERFORM FROM tasks t WHERE (t.org_id, t.id) = (NEW.org_id, NEW.task_id) FOR NO KEY UPDATE; -- its writers queue
    v_last := (SELECT n.id FROM task_notes n WHERE (n.org_id, n.project_id, n.task_id) = (NEW.org_id, NEW.project_id, NEW.task_id) ORDER BY n.id DESC LIMIT 1);
    NEW.id := coalesce(hub_uuidv7_after(v_last), hub_uuidv7());
    NEW.created_at := clock_timestamp();
    NEW.account_id := current_account_id();
    NEW.session_id := current_session_id();
    RETURN NEW;
END $$;
COMMENT ON FUNCTION sign_task_note() IS 'C08: notes of a task sort by id in the order of writing, and say who wrote them.';
CREATE TRIGGER task_notes_signed BEFORE INSERT ON task_notes FOR EACH ROW EXECUTE FUNCTION sign_task_note();

CREATE VIEW task_documents WITH (security_invoker = true) AS
    SELECT t.org_id, t.id, t.project_id, t.slug,
           concat('# ', t.name, E'\n\n', rtrim(t.body, E' \t\r\n'), CASE WHEN t.body ~ '\S' THEN E'\n' ELSE '' END,
                  (SELECT concat(E'\n## Notes\n', string_agg(concat(E'\n### ', to_char(n.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), E'\n\n', rtrim(n.body, E' \t\r\n'), E'\n'), '' ORDER BY n.id))
                   FROM task_notes n WHERE (n.org_id, n.project_id, n.task_id) = (t.org_id, t.project_id, t.id) HAVING count(*) > 0))::text AS document
    FROM tasks t;
COMMENT ON VIEW task_documents IS 'C08: a task''s body and its notes as one Markdown text.';


-- The feed (X05) -------------------------------------------------------------------------------------------------

CREATE FUNCTION record_tasks_created() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    INSERT INTO pending_events AS e (org_id, kind, row_id, action, row_revision, project_id)
    SELECT c.org_id, 'task', c.id, 'created', c.revision, c.project_id FROM created c ORDER BY c.id
    ON CONFLICT (org_id, writer, kind, row_id) DO UPDATE SET row_revision = excluded.row_revision, action = excluded.action;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION record_tasks_created() IS 'X05: as record_row_event, for all tasks of a statement: syncs bring many.';
CREATE TRIGGER tasks_record_created AFTER INSERT ON tasks
    REFERENCING NEW TABLE AS created FOR EACH STATEMENT EXECUTE FUNCTION record_tasks_created();
CREATE TRIGGER tasks_record_change AFTER UPDATE ON tasks
    FOR EACH ROW WHEN (OLD.revision IS DISTINCT FROM NEW.revision) EXECUTE FUNCTION record_row_event('task');
CREATE TRIGGER tasks_record_deleted AFTER DELETE ON tasks FOR EACH ROW EXECUTE FUNCTION record_row_event('task');


-- Who may see and do what ----------------------------------------------------------------------------------------

ALTER TABLE tasks ENABLE ROW LEVEL SECURITY;
ALTER TABLE tasks FORCE ROW LEVEL SECURITY;
ALTER TABLE task_status_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_status_changes FORCE ROW LEVEL SECURITY;
ALTER TABLE task_dependencies ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_dependencies FORCE ROW LEVEL SECURITY;
ALTER TABLE task_notes ENABLE ROW LEVEL SECURITY;
ALTER TABLE task_notes FORCE ROW LEVEL SECURITY;

CREATE POLICY tasks_tenant ON tasks TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY task_status_changes_tenant ON task_status_changes TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY task_dependencies_tenant ON task_dependencies TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY task_notes_tenant ON task_notes TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY tasks_limited ON tasks AS RESTRICTIVE TO hub_app
    USING ((SELECT current_project_ids()) IS NULL OR project_id = ANY ((SELECT current_project_ids())::uuid[]));
CREATE POLICY task_status_changes_limited ON task_status_changes AS RESTRICTIVE TO hub_app
    USING ((SELECT current_project_ids()) IS NULL OR project_id = ANY ((SELECT current_project_ids())::uuid[]));
CREATE POLICY task_dependencies_limited ON task_dependencies AS RESTRICTIVE TO hub_app
    USING ((SELECT current_project_ids()) IS NULL OR project_id = ANY ((SELECT current_project_ids())::uuid[]));
CREATE POLICY task_notes_limited ON task_notes AS RESTRICTIVE TO hub_app
    USING ((SELECT current_project_ids()) IS NULL OR project_id = ANY ((SELECT current_project_ids())::uuid[]));
CREATE POLICY projects_bookkeeping ON projects TO hub_system USING (true);
CREATE POLICY tasks_bookkeeping ON tasks TO hub_system USING (true);
CREATE POLICY task_status_changes_bookkeeping ON task_status_changes TO hub_system USING (true);
CREATE POLICY task_dependencies_bookkeeping ON task_dependencies TO hub_system USING (true);
CREATE POLICY task_notes_purge ON task_notes TO hub_system USING (is_deleted_organization(org_id));

GRANT SELECT ON task_status_transitions TO hub_app, hub_system;
GRANT SELECT, DELETE ON tasks TO hub_app;
GRANT INSERT (org_id, id, project_id, slug, name, path, scope, risk, impact, level, priority, tags, assignee, due, body, file_created_at, file_modified_at, frontmatter, base, status, metadata),
      UPDATE (slug, name, path, scope, risk, impact, level, priority, tags, assignee, due, body, file_created_at, file_modified_at, frontmatter, base, archived_at, metadata) ON tasks TO hub_app;
GRANT SELECT ON task_status_changes, task_documents TO hub_app;
GRANT SELECT, DELETE ON task_dependencies TO hub_app;
GRANT INSERT (org_id, project_id, dependent_task_id, depends_on_task_id) ON task_dependencies TO hub_app;
GRANT SELECT, INSERT (org_id, project_id, task_id, body) ON task_notes TO hub_app;
GRANT UPDATE (graph_version) ON projects TO hub_system;
GRANT SELECT, DELETE ON tasks, task_status_changes, task_dependencies, task_notes TO hub_system;
GRANT UPDATE (status, started_at, completed_at, unmet_count, failed_count, downstream_count) ON tasks TO hub_system;
GRANT INSERT ON task_status_changes TO hub_system;

REVOKE ALL ON FUNCTION record_tasks_created(), record_task_status(), refresh_task_graph(uuid, uuid), refresh_changed_task_graphs(), refresh_archived_task_graphs() FROM PUBLIC;
GRANT CREATE ON SCHEMA public TO hub_system;
ALTER FUNCTION record_tasks_created() OWNER TO hub_system;
ALTER FUNCTION record_task_status() OWNER TO hub_system;
ALTER FUNCTION refresh_task_graph(uuid, uuid) OWNER TO hub_system;
ALTER FUNCTION refresh_changed_task_graphs() OWNER TO hub_system;
ALTER FUNCTION refresh_archived_task_graphs() OWNER TO hub_system;
REVOKE CREATE ON SCHEMA public FROM hub_system;
