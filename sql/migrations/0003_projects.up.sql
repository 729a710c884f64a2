-- Projects: what an organisation works on. Sessions, tasks and mappings belong to one (S13).

CREATE TABLE projects (
    org_id      uuid        NOT NULL,
    id          uuid        NOT NULL DEFAULT hub_uuidv7(),
    slug        text        NOT NULL,
    name        text        NOT NULL,
    description text        NOT NULL DEFAULT '',
    archived_at timestamptz,
    data        jsonb       NOT NULL DEFAULT '{}',
    metadata    jsonb       NOT NULL DEFAULT '{}',
    revision    integer     NOT NULL DEFAULT 1,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projects_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT projects_slug_key UNIQUE (org_id, slug),
    CONSTRAINT projects_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations (id) ON DELETE RESTRICT,
    CONSTRAINT projects_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT projects_slug_shape_check CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND char_length(slug) <= 100),
    CONSTRAINT projects_name_length_check CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT projects_description_length_check CHECK (char_length(description) <= 10000),
    CONSTRAINT projects_data_object_check CHECK (jsonb_typeof(data) = 'object'),
    CONSTRAINT projects_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE projects IS 'What an organisation works on: usually one repository.';
COMMENT ON COLUMN projects.slug IS 'Short name for people and command lines, unique in the organisation.';
COMMENT ON COLUMN projects.archived_at IS 'When the project was put aside; NULL while it is in use.';
COMMENT ON COLUMN projects.data IS 'W01: structured settings, typed in the contract.';
COMMENT ON COLUMN projects.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN projects.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT projects_org_id_fkey ON projects IS 'W12: an organisation is purged from its leaves; the row goes last. Indexed by projects_slug_key (W03).';
COMMENT ON CONSTRAINT projects_id_version_check ON projects IS 'C02';
COMMENT ON CONSTRAINT projects_metadata_check ON projects IS 'W01';

CREATE TRIGGER projects_touch BEFORE UPDATE ON projects
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER projects_identity_immutable BEFORE UPDATE ON projects
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A project''s organisation, id and creation time');

ALTER TABLE projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE projects FORCE ROW LEVEL SECURITY;
CREATE POLICY projects_tenant ON projects TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY projects_limited ON projects AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE id = ANY ((SELECT current_project_ids())::uuid[]) END);
COMMENT ON POLICY projects_limited ON projects IS 'What api_keys.resources limits a key to. As CASE, because the planner takes OR for a filter that lets few rows pass, and sorts instead of following an index.';
-- Who inserts does not choose revision or updated_at (W22): the columns are listed.
GRANT SELECT, UPDATE, DELETE ON projects TO hub_app;
GRANT INSERT (org_id, id, slug, name, description, archived_at, data, metadata) ON projects TO hub_app;


-- Workspaces -----------------------------------------------------------------------------------------------------

CREATE TABLE workspaces (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    project_id uuid        NOT NULL,
    name       text        NOT NULL,
    path       text        NOT NULL,
    branch     text,
    metadata   jsonb       NOT NULL DEFAULT '{}',
    revision   integer     NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT workspaces_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT workspaces_name_key UNIQUE (org_id, project_id, name),
    CONSTRAINT workspaces_project_id_id_key UNIQUE (org_id, project_id, id),
    CONSTRAINT workspaces_project_id_fkey FOREIGN KEY (org_id, project_id) REFERENCES projects (org_id, id) ON DELETE CASCADE,
    CONSTRAINT workspaces_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT workspaces_name_length_check CHECK (char_length(name) BETWEEN 1 AND 200),
    CONSTRAINT workspaces_path_shape_check CHECK (octet_length(path) <= 4000 AND path ~ '^(/|[A-Za-z]:[/\\]|\\\\|[A-Za-z][A-Za-z0-9+.-]*://)[^[:cntrl:]]*$'),
    CONSTRAINT workspaces_branch_shape_check CHECK (octet_length(branch) <= 255 AND branch ~ '^[^[:cntrl:][:space:]]+$'),
    CONSTRAINT workspaces_metadata_check CHECK (is_metadata(metadata))
);
COMMENT ON TABLE workspaces IS 'Where a project''s work is done: a checkout, a directory. Of no spoke: several machines may have the same one.';
COMMENT ON COLUMN workspaces.project_id IS 'S13: immutable.';
COMMENT ON COLUMN workspaces.name IS 'Unique in the project.';
COMMENT ON COLUMN workspaces.path IS 'An absolute path (POSIX, Windows, UNC) or a URL.';
COMMENT ON COLUMN workspaces.branch IS 'Of the version control, where it has one.';
COMMENT ON COLUMN workspaces.metadata IS 'W01: opaque, one object per subsystem.';
COMMENT ON COLUMN workspaces.revision IS 'Counts changes: the ETag.';
COMMENT ON CONSTRAINT workspaces_project_id_fkey ON workspaces IS 'S13. Indexed by workspaces_name_key (W03).';
COMMENT ON CONSTRAINT workspaces_project_id_id_key ON workspaces IS 'S13: what mappings refer to, so that a placement''s workspace is its project''s.';
COMMENT ON CONSTRAINT workspaces_id_version_check ON workspaces IS 'C02';
COMMENT ON CONSTRAINT workspaces_metadata_check ON workspaces IS 'W01';

CREATE TRIGGER workspaces_touch BEFORE UPDATE ON workspaces
    FOR EACH ROW WHEN (OLD.* *<> NEW.*) EXECUTE FUNCTION touch_row();
CREATE TRIGGER workspaces_identity_immutable BEFORE UPDATE ON workspaces
    FOR EACH ROW WHEN ((OLD.org_id, OLD.id, OLD.project_id, OLD.created_at) IS DISTINCT FROM (NEW.org_id, NEW.id, NEW.project_id, NEW.created_at))
    EXECUTE FUNCTION refuse_change('A workspace''s organisation, id, project and creation time');
COMMENT ON TRIGGER workspaces_identity_immutable ON workspaces IS 'S13';

ALTER TABLE workspaces ENABLE ROW LEVEL SECURITY;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
CREATE POLICY workspaces_tenant ON workspaces TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY workspaces_limited ON workspaces AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE project_id = ANY ((SELECT current_project_ids())::uuid[]) END);
GRANT SELECT, DELETE ON workspaces TO hub_app;
GRANT INSERT (org_id, project_id, name, path, branch, metadata), UPDATE (name, path, branch, metadata) ON workspaces TO hub_app;
