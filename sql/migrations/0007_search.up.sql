-- Search: full text over the titles of sessions and over their parts.
-- Under row level security @@ gets no index (it is not leakproof), so the search itself is a function of hub_search's.

CREATE EXTENSION btree_gin SCHEMA extensions;


-- Words -----------------------------------------------------------------------------------------------------------

CREATE TEXT SEARCH DICTIONARY hub_english (TEMPLATE = pg_catalog.snowball, LANGUAGE = english);
COMMENT ON TEXT SEARCH DICTIONARY hub_english IS 'English stems without stop words: in code "if" and "this" are words like any other.';
CREATE TEXT SEARCH CONFIGURATION hub_text (COPY = pg_catalog.simple);
ALTER TEXT SEARCH CONFIGURATION hub_text ALTER MAPPING FOR asciiword, asciihword, hword_asciipart WITH hub_english;
COMMENT ON TEXT SEARCH CONFIGURATION hub_text IS 'Words of ASCII letters by their English stem, all others as they are, in lower case.';

CREATE FUNCTION unspaced_letters() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN E'\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u2E80-\u2FDF\u3005-\u3007\u3040-\u318F\u31F0-\u31FF\u3400-\u4DBF\u4E00-\u9FFF\uAC00-\uD7AF\uF900-\uFAFF\U00020000-\U0003FFFF';
COMMENT ON FUNCTION unspaced_letters() IS
    'For a bracket expression: the letters of languages that put no spaces between words, or not between all that readers look for: Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean.';

CREATE FUNCTION search_letters(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN translate(CASE WHEN octet_length(p_text) > char_length(p_text) THEN normalize(p_text, NFKC) ELSE p_text END,
                 '!"#$%&''()*+,-./:;<=>?@[\]^_`{|}~', repeat(' ', 32));
COMMENT ON FUNCTION search_letters(text) IS 'A text in which each spelling of a letter is the same (NFKC), and without punctuation: src/app/discount.ts and last_message_id are words one by one, which the parser would take for a file and keep whole.';

CREATE FUNCTION search_vector(p_text text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_text text := search_letters(p_text);
BEGIN
    IF octet_length(v_text) > char_length(v_text) AND v_text ~ ('[' || unspaced_letters() || ']') THEN
        -- ABCD becomes A AB BC CD D: any two letters that follow each other are a word, and each letter begins one.
        v_text := regexp_replace(regexp_replace(v_text, '([' || unspaced_letters() || ']+)', ' \1 ', 'g'), '([' || unspaced_letters() || '])', '\1 \1', 'g');
    END IF;
    RETURN to_tsvector('public.hub_text', v_text);
END $$;
COMMENT ON FUNCTION search_vector(text) IS 'The words of a text, where languages without spaces are concerned each two letters of it.';

CREATE FUNCTION search_query(p_query text, p_for_snippet boolean) RETURNS tsquery
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp SET client_min_messages = warning AS $$
DECLARE
    v_term  text[];
    v_run   text[];
    v_word  tsquery;
    v_and   tsquery := '';
    v_or    tsquery := '';
    v_whole tsquery;
BEGIN
    FOR v_term IN SELECT regexp_matches(p_query, '(-?)(?:"([^"]*)"?|(\S+))', 'g') LOOP
        IF v_term[1] = '' AND lower(v_term[3]) = 'or' THEN
            v_or := v_or || v_and;
            v_and := '';
            CONTINUE;
        END IF;
        v_word := '';
        FOR v_run IN
            SELECT regexp_matches(search_letters(coalesce(v_term[2], v_term[3])), '([' || unspaced_letters() || ']+)|([^' || unspaced_letters() || ']+)', 'g')
        LOOP
            v_whole := '';
            IF v_run[1] IS NULL THEN
                IF v_term[3] ~ '[[:alnum:]]\*$' AND v_run[2] ~ '[[:alnum:]] *$' THEN -- a beginning: src/disc*
                    v_whole := tsquery_phrase(phraseto_tsquery('public.hub_text', regexp_replace(v_run[2], '[^ ]+ *$', '')),
                                              (quote_literal(lower(substring(v_run[2] FROM '([^ ]+) *$'))) || ':*')::tsquery);
                ELSE
                    v_whole := phraseto_tsquery('public.hub_text', v_run[2]);
                END IF;
            ELSIF char_length(v_run[1]) = 1 THEN
                v_whole := (quote_literal(v_run[1]) || CASE WHEN p_for_snippet THEN '' ELSE ':*' END)::tsquery;
            ELSE
                SELECT phraseto_tsquery('public.hub_text', string_agg(substr(v_run[1], n, CASE WHEN p_for_snippet THEN 1 ELSE 2 END), ' ' ORDER BY n)) INTO v_whole
                FROM generate_series(1, char_length(v_run[1]) - CASE WHEN p_for_snippet THEN 0 ELSE 1 END) n;
            END IF;
            v_word := v_word && v_whole;
        END LOOP;
        IF v_term[1] = '-' THEN
            v_word := !! v_word;
        END IF;
        v_and := v_and && v_word;
    END LOOP;
    RETURN v_or || v_and;
END $$;
COMMENT ON FUNCTION search_query(text, boolean) IS
    'What people type: all words, a "phrase", -not, one or the other, a begin*. For a snippet letters of languages without spaces are words one by one.';

CREATE FUNCTION search_snippet(p_text text, p_query text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp AS $$
    SELECT translate(ts_headline('public.hub_text',
               regexp_replace(translate(p_text, E'\x01\x02\x03', ''), '([' || unspaced_letters() || E']|[]!"#$%&''()*+,\\-./:;<=>?@[\\\\^_`{|}~])', E'\x01\\1\x01', 'g'),
               search_query(p_query, true),
               E'StartSel=\x02, StopSel=\x03, MaxFragments=2, MaxWords=30, MinWords=10, ShortWord=0, FragmentDelimiter=" … "'), E'\x01', '');
$$;
COMMENT ON FUNCTION search_snippet(text, text) IS 'Where in a text the words of a query are: U+0002 stands before and U+0003 behind each. (U+0001 parts words from what the parser would take for one with them.)';


-- What can be found ------------------------------------------------------------------------------------------------

CREATE FUNCTION part_text(p_data jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_text text := concat_ws(E'\n',
        p_data ->> 'text', p_data ->> 'filename', p_data ->> 'name', p_data ->> 'description', p_data ->> 'prompt', p_data #>> '{source,text,value}',
        p_data #>> '{state,title}', (SELECT string_agg(v #>> '{}', E'\n') FROM jsonb_path_query(p_data #> '{state,input}', 'strict $.**') v WHERE jsonb_typeof(v) = 'string'),
        p_data #>> '{state,output}', p_data #>> '{state,error}', (SELECT string_agg(f, E'\n') FROM jsonb_array_elements_text(CASE jsonb_typeof(p_data -> 'files') WHEN 'array' THEN p_data -> 'files' END) f),
        p_data #>> '{error,data,message}');
BEGIN
    IF strpos(v_text, E'\x10') > 0 THEN -- what jsonb cannot hold (X07)
        v_text := regexp_replace(v_text, E'\x10(0|u[0-9a-f]{4}|\x10)', E'\uFFFD', 'g');
    END IF;
    RETURN v_text;
END $$;
COMMENT ON FUNCTION part_text(jsonb) IS
    'What can be found of a part: its text, a tool call''s title, input, output and error, names of files, a sub-agent''s prompt, a retry''s error. Of unknown types what has one of these names.';

CREATE FUNCTION search_chunk(p_text text, p_chunk integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN substr(p_text, p_chunk * 8000 + 1, 8100);
COMMENT ON FUNCTION search_chunk(text, integer) IS
    'One piece of a text, a hundred characters longer than the way to the next, so that hardly a phrase is torn. Pieces this short fit a tsvector (its limits: 1 MB, 16,383 positions), and a snippet is made of one.';

CREATE TABLE search_entries (
    org_id     uuid        NOT NULL,
    id         uuid        NOT NULL DEFAULT hub_uuidv7(),
    session_id uuid        NOT NULL,
    part_id    uuid,
    chunk      integer     NOT NULL DEFAULT 0,
    vector     tsvector    NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT search_entries_pkey PRIMARY KEY (org_id, id),
    CONSTRAINT search_entries_part_id_chunk_key UNIQUE (org_id, part_id, chunk),
    CONSTRAINT search_entries_session_id_fkey FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE,
    CONSTRAINT search_entries_part_id_fkey FOREIGN KEY (org_id, part_id) REFERENCES parts (org_id, id) ON DELETE CASCADE,
    CONSTRAINT search_entries_id_version_check CHECK (is_uuidv7(id)),
    CONSTRAINT search_entries_chunk_range_check CHECK (chunk BETWEEN 0 AND 124)
);
COMMENT ON TABLE search_entries IS 'What search looks through: one row for each title, and for each 8,000 characters of a part''s text, up to a million. Kept by triggers, in the transaction of what they index.';
COMMENT ON COLUMN search_entries.part_id IS 'NULL for the session''s title.';
COMMENT ON COLUMN search_entries.vector IS 'See search_vector().';
COMMENT ON COLUMN search_entries.created_at IS 'When the part, or the session, was created.';
COMMENT ON CONSTRAINT search_entries_part_id_chunk_key ON search_entries IS 'Also the index of search_entries_part_id_fkey (W03).';
COMMENT ON CONSTRAINT search_entries_id_version_check ON search_entries IS 'C02';

CREATE INDEX search_entries_session_id_idx ON search_entries (org_id, session_id);
CREATE INDEX search_entries_vector_idx ON search_entries USING gin (org_id, vector);

CREATE FUNCTION index_parts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM search_entries e USING added n, removed o
        WHERE (o.org_id, o.id) = (n.org_id, n.id) AND o.data IS DISTINCT FROM n.data AND (e.org_id, e.part_id) = (n.org_id, n.id);
        INSERT INTO search_entries (org_id, session_id, part_id, chunk, vector, created_at)
        SELECT n.org_id, n.session_id, n.id, c.chunk, v.vector, n.created_at
        FROM added n JOIN removed o ON (o.org_id, o.id) = (n.org_id, n.id) AND o.data IS DISTINCT FROM n.data,
             part_text(n.data) t, generate_series(0, least(124, (char_length(t) - 1) / 8000)) c(chunk), search_vector(search_chunk(t, c.chunk)) v(vector)
        WHERE v.vector <> '';
    ELSE
        INSERT INTO search_entries (org_id, session_id, part_id, chunk, vector, created_at)
        SELECT n.org_id, n.session_id, n.id, c.chunk, v.vector, n.created_at
        FROM added n, part_text(n.data) t, generate_series(0, least(124, (char_length(t) - 1) / 8000)) c(chunk), search_vector(search_chunk(t, c.chunk)) v(vector)
        WHERE v.vector <> '';
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION index_parts() IS 'Keeps search_entries, after each statement.';
CREATE TRIGGER parts_index_added AFTER INSERT ON parts
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION index_parts();
CREATE TRIGGER parts_index_changed AFTER UPDATE ON parts
    REFERENCING NEW TABLE AS added OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION index_parts();

CREATE FUNCTION index_session_title() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    v_vector tsvector := search_vector(search_chunk(NEW.title, 0));
BEGIN
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM search_entries e WHERE e.org_id = NEW.org_id AND e.session_id = NEW.id AND e.part_id IS NULL;
    END IF;
    IF v_vector <> '' THEN
        INSERT INTO search_entries (org_id, session_id, vector, created_at) VALUES (NEW.org_id, NEW.id, v_vector, NEW.created_at);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION index_session_title() IS 'Keeps the title''s row of search_entries.';
CREATE TRIGGER sessions_index_title AFTER INSERT ON sessions
    FOR EACH ROW WHEN (NEW.title <> '') EXECUTE FUNCTION index_session_title();
CREATE TRIGGER sessions_index_new_title AFTER UPDATE ON sessions
    FOR EACH ROW WHEN (OLD.title IS DISTINCT FROM NEW.title) EXECUTE FUNCTION index_session_title();


-- The search ---------------------------------------------------------------------------------------------------------

CREATE FUNCTION search_sessions(p_query text, p_project_id uuid, p_role_name text, p_account_id uuid, p_archived boolean, p_since timestamptz, p_until timestamptz,
                                p_below_rank real, p_below_id uuid, p_limit integer)
RETURNS TABLE (session_id uuid, rank real, matches bigint, entry_ids uuid[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET plan_cache_mode = force_custom_plan AS $$
DECLARE
    v_org   constant uuid    := current_org_id();
    v_query constant tsquery := search_query(p_query, false);
    v_projects constant uuid[] := current_project_ids();
BEGIN
    IF numnode(v_query) = 0 OR querytree(v_query) IN ('', 'T') THEN
        PERFORM raise_rule('search_query_empty', 'The query has no word to look for.', '22023');
    END IF;
    RETURN QUERY
    WITH candidate AS (
        SELECT e.id, e.session_id, e.part_id, e.vector, e.created_at
        FROM search_entries e JOIN sessions s ON s.org_id = e.org_id AND s.id = e.session_id
        WHERE e.org_id = v_org AND e.vector @@ v_query
          AND s.deleted_at IS NULL
          AND (v_projects IS NULL OR s.project_id = ANY (v_projects))
          AND (p_project_id IS NULL OR s.project_id = p_project_id)
          AND (p_role_name IS NULL OR s.role_name = p_role_name)
          AND (p_account_id IS NULL OR s.account_id = p_account_id)
          AND (p_archived IS NULL OR (s.archived_at IS NOT NULL) = p_archived)
          AND (p_since IS NULL OR e.created_at >= p_since)
          AND (p_until IS NULL OR e.created_at < p_until)
        ORDER BY e.created_at DESC
        LIMIT 20000
    ), ranked AS (
        SELECT c.id, c.session_id, c.part_id, c.created_at, ts_rank(c.vector, v_query, 1) * CASE WHEN c.part_id IS NULL THEN 2 ELSE 1 END::real AS rank FROM candidate c
    ), best AS (
        SELECT DISTINCT ON (r.session_id, r.part_id) r.* FROM ranked r ORDER BY r.session_id, r.part_id, r.rank DESC, r.id
    ), session AS (
        SELECT b.session_id, max(b.rank) AS rank, count(*) AS matches FROM best b GROUP BY b.session_id
    ), page AS (
        SELECT * FROM session s WHERE p_below_id IS NULL OR (s.rank, s.session_id) < (p_below_rank, p_below_id) ORDER BY s.rank DESC, s.session_id DESC LIMIT p_limit
    )
    SELECT p.session_id, p.rank, p.matches, ARRAY(SELECT b.id FROM best b WHERE b.session_id = p.session_id ORDER BY b.rank DESC, b.created_at DESC, b.id LIMIT 3)
    FROM page p ORDER BY p.rank DESC, p.session_id DESC;
END $$;
COMMENT ON FUNCTION search_sessions(text, uuid, text, uuid, boolean, timestamptz, timestamptz, real, uuid, integer) IS
    'The sessions of the caller''s organisation in which a query is found, the best first, each with its three best entries. Of more than 20,000 entries that match the newest are ranked. A title counts twice.';

REVOKE ALL ON FUNCTION index_parts(), index_session_title(), search_sessions(text, uuid, text, uuid, boolean, timestamptz, timestamptz, real, uuid, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION search_sessions(text, uuid, text, uuid, boolean, timestamptz, timestamptz, real, uuid, integer) TO hub_app;
GRANT CREATE ON SCHEMA public TO hub_search;
ALTER FUNCTION index_parts() OWNER TO hub_search;
ALTER FUNCTION index_session_title() OWNER TO hub_search;
ALTER FUNCTION search_sessions(text, uuid, text, uuid, boolean, timestamptz, timestamptz, real, uuid, integer) OWNER TO hub_search;
REVOKE CREATE ON SCHEMA public FROM hub_search;

ALTER TABLE search_entries ENABLE ROW LEVEL SECURITY;
ALTER TABLE search_entries FORCE ROW LEVEL SECURITY;
CREATE POLICY search_entries_tenant ON search_entries TO hub_app USING (org_id = (SELECT current_org_id()));
CREATE POLICY search_entries_limited ON search_entries AS RESTRICTIVE TO hub_app
    USING (CASE WHEN (SELECT current_project_ids()) IS NULL THEN true ELSE EXISTS (SELECT FROM sessions s WHERE (s.org_id, s.id) = (search_entries.org_id, search_entries.session_id)) END);
CREATE POLICY search_entries_search ON search_entries TO hub_search USING (true);
CREATE POLICY search_entries_purge ON search_entries TO hub_system USING (is_deleted_organization(org_id));
CREATE POLICY sessions_search ON sessions FOR SELECT TO hub_search USING (true);
GRANT SELECT ON search_entries TO hub_app;
GRANT SELECT, INSERT, DELETE ON search_entries TO hub_search;
GRANT SELECT, DELETE ON search_entries TO hub_system;
GRANT SELECT ON sessions TO hub_search;
