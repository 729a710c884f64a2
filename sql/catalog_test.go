package sql_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/postgres/pgtest"
)

// The laws of the schema, over all tables that there are: a new table obeys them or names itself among the exceptions.

// views are what the laws are written in.
const views = `
	-- tenant is the column that says whose a row is. The audit log outlives its organisation, so its rows belong to a chain, which has the organisation's id.
	CREATE TEMPORARY VIEW tables AS
		SELECT c.oid, c.relname::text AS name, c.relrowsecurity AS rls, c.relforcerowsecurity AS forced,
		       CASE WHEN c.relname IN ('audit_chains', 'audit_logs') THEN 'chain_id'
		            WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'org_id' AND NOT a.attisdropped) THEN 'org_id' END AS tenant,
		       c.relname IN ('accounts', 'organizations', 'organization_members', 'api_keys', 'encryption_keys', 'secret_rotations') AS control_plane
		FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p');
	CREATE TEMPORARY VIEW columns AS
		SELECT t.oid, t.name AS tab, a.attname::text AS name, a.attnum AS num, a.attnotnull AS required, a.attgenerated <> '' AS generated,
		       format_type(a.atttypid, a.atttypmod) AS type, pg_get_expr(d.adbin, d.adrelid) AS def
		FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
		LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum;
	CREATE TEMPORARY VIEW constraints AS
		SELECT c.*, t.name AS tab, c.conname::text AS name,
		       (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY k(num, n) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num) AS cols
		FROM pg_constraint c JOIN tables t ON t.oid = c.conrelid;
	CREATE TEMPORARY VIEW indexes AS
		SELECT x.*, t.name AS tab, i.relname::text AS name, i.relam, pg_get_expr(x.indpred, x.indrelid) AS predicate,
		       (SELECT array_agg(coalesce(a.attname::text, '(expression)') ORDER BY k.n)
		        FROM unnest(x.indkey[0:x.indnkeyatts - 1]) WITH ORDINALITY k(num, n) LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.num AND k.num > 0) AS cols
		FROM pg_index x JOIN tables t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid;
	CREATE TEMPORARY VIEW functions AS
		SELECT p.*, p.oid::regprocedure::text AS signature, pg_get_userbyid(p.proowner)::text AS owner, l.lanname
		FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang WHERE p.pronamespace = 'public'::regnamespace;
	-- What hub looks up: rules as data. It never writes them, but for what it adds at its start (as hub_system).
	CREATE TEMPORARY VIEW lookups AS
		SELECT t.* FROM tables t
		WHERE t.tenant IS NULL AND NOT t.control_plane
		  AND NOT EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name = 'updated_at')
		  AND NOT EXISTS (SELECT FROM unnest('{hub_app,hub_auth,hub_system,hub_search}'::text[]) r
		                  WHERE has_table_privilege(r, t.oid, 'UPDATE,DELETE,TRUNCATE') OR has_any_column_privilege(r, t.oid, 'UPDATE') OR has_any_column_privilege(r, t.oid, 'INSERT') AND r <> 'hub_system');
	-- The names that PostgreSQL can refuse with, but for NOT NULL.
	CREATE TEMPORARY VIEW rules AS
		SELECT name FROM constraints WHERE contype IN ('p', 'u', 'f', 'c', 'x')
		UNION ALL SELECT name FROM indexes x WHERE x.indisunique AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = x.indexrelid)
		UNION ALL SELECT g.tgname::text FROM pg_trigger g JOIN tables t ON t.oid = g.tgrelid JOIN functions f ON f.oid = g.tgfoid
			WHERE NOT g.tgisinternal AND f.prosrc LIKE '%raise_rule(TG_NAME%'
		UNION ALL SELECT DISTINCT m[1] FROM functions f, regexp_matches(f.prosrc, 'raise_rule\(''([a-z0-9_]+)''', 'g') m;`

// ofMigrations are the tables that lie outside the migrations: no request writes them.
const ofMigrations = "'^schema_migration'"

// catalog is a superuser's connection to a migrated database that has the views above.
func catalog(t testing.TB) *pgx.Conn {
	t.Helper()
	pgtest.Database(t)
	conn := connect(t, pgtest.URL(t, "hub"))
	exec(t, conn, views)
	return conn
}

// none fails the test with what the query lists.
func none(t testing.TB, conn *pgx.Conn, law, query string) {
	t.Helper()
	if broken := list[string](t, conn, query); len(broken) > 0 {
		t.Errorf("%s, but not so:\n\t%s", law, strings.Join(broken, "\n\t"))
	}
}

func TestC01_SetNullNeverMeetsNotNull(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "a column that ON DELETE or ON UPDATE SET NULL clears can be NULL", `
		SELECT format('%s (%s)', f.name, c.name)
		FROM constraints f JOIN columns c ON c.oid = f.conrelid AND c.required
		WHERE f.contype = 'f' AND (f.confdeltype = 'n' AND c.num = ANY (coalesce(f.confdelsetcols, f.conkey)) OR f.confupdtype = 'n' AND c.num = ANY (f.conkey))`)
	none(t, conn, "nothing is SET DEFAULT", `SELECT name FROM constraints WHERE contype = 'f' AND 'd' IN (confdeltype, confupdtype)`)
	if got := get[int](t, conn, `SELECT count(*) FROM constraints WHERE contype = 'f' AND confdeltype = 'n'`); got == 0 {
		t.Error("no foreign key is SET NULL any more: what is this test of?")
	}
}

func TestC14_EveryForeignKeyStatesItsOnDelete(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	// NO ACTION is what a foreign key gets that says nothing. One has it on purpose (C13), and that one alone is deferrable.
	if got := list[string](t, conn, "SELECT name FROM constraints WHERE contype = 'f' AND (confdeltype = 'a' OR condeferrable)"); !slices.Equal(got, []string{"organizations_owner_is_member_fkey"}) {
		t.Errorf("NO ACTION or deferrable: %v", got)
	}
	none(t, conn, "every constraint is valid, and every index", "SELECT name FROM constraints WHERE NOT convalidated UNION ALL SELECT name FROM indexes WHERE NOT indisvalid")
}

func TestX01_CompositeForeignKeysAreChecked(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "at most one column of a foreign key can be NULL (MATCH SIMPLE checks nothing then)", `
		SELECT format('%s (%s)', f.name, string_agg(c.name, ', '))
		FROM constraints f JOIN columns c ON c.oid = f.conrelid AND c.num = ANY (f.conkey) AND NOT c.required
		WHERE f.contype = 'f' GROUP BY f.name HAVING count(*) > 1`)
	none(t, conn, "a column that can be NULL is in one foreign key, unless a CHECK binds it", `
		SELECT format('%s and %s (%s)', f.name, g.name, c.name)
		FROM constraints f
		JOIN columns c ON c.oid = f.conrelid AND c.num = ANY (f.conkey) AND NOT c.required
		JOIN constraints g ON g.conrelid = f.conrelid AND g.contype = 'f' AND g.oid > f.oid AND c.num = ANY (g.conkey)
		WHERE f.contype = 'f'
		  AND NOT EXISTS (SELECT FROM constraints k WHERE k.conrelid = f.conrelid AND k.contype = 'c' AND c.num = ANY (k.conkey) AND cardinality(k.conkey) > 1)`)
}

func TestW03_IndexLaw(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "an index starts with the columns of each foreign key (but of those to what is only looked up)", `
		SELECT format('%s (%s)', f.name, array_to_string(f.cols, ', '))
		FROM constraints f
		WHERE f.contype = 'f' AND f.confrelid NOT IN (SELECT oid FROM lookups)
		  AND NOT EXISTS (SELECT FROM indexes x WHERE x.indrelid = f.conrelid AND x.predicate IS NULL
		                  AND x.cols[1:cardinality(f.cols)] @> f.cols AND f.cols @> x.cols[1:cardinality(f.cols)])`)
	none(t, conn, "no index is the beginning of another one", `
		SELECT format('%s (%s) of %s (%s)', x.name, array_to_string(x.cols, ', '), y.name, array_to_string(y.cols, ', '))
		FROM indexes x JOIN indexes y ON y.indrelid = x.indrelid AND y.indexrelid <> x.indexrelid AND y.relam = x.relam
		WHERE NOT x.indisunique AND x.predicate IS NOT DISTINCT FROM y.predicate AND x.indexprs IS NULL AND y.indexprs IS NULL
		  AND y.cols[1:cardinality(x.cols)] = x.cols
		  AND (string_to_array(x.indclass::text, ' '))[1:x.indnkeyatts] = (string_to_array(y.indclass::text, ' '))[1:x.indnkeyatts]
		  AND (string_to_array(x.indoption::text, ' '))[1:x.indnkeyatts] = (string_to_array(y.indoption::text, ' '))[1:x.indnkeyatts]`)
	lookups := list[string](t, conn, "SELECT name FROM lookups WHERE name !~ "+ofMigrations+" ORDER BY name")
	if want := []string{"account_status_transitions", "client_types", "reserved_email_domains", "session_run_state_transitions", "session_run_states", "session_versions", "tool_state_transitions", "tool_states"}; !slices.Equal(intersection(want, lookups), want) {
		t.Errorf("what is only looked up: %v", lookups)
	}
}

func intersection(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return !slices.Contains(b, s) })
}

// notByOrganisation are the indexes and foreign keys of tenants' tables that do not start with the organisation, and why.
var notByOrganisation = map[string]string{
	"api_keys_key_hash_key":                "found before the organisation is known",
	"pending_events_writer_idx":            "one sequencer works for all organisations",
	"organization_members_account_id_fkey": "an account belongs to no organisation",
	"organization_members_account_id_idx":  "an account's memberships, for that foreign key",
	"call_payloads_key_version_fkey":       "a key is the whole platform's",
	"call_payloads_key_version_idx":        "for that foreign key",
	"client_secrets_key_version_fkey":      "a key is the whole platform's",
	"client_secrets_key_version_idx":       "the secrets under a key, for that foreign key and the sweep",
	"audit_logs_owner_id_fkey":             "an account belongs to no organisation",
	"audit_logs_owner_id_idx":              "an account's entries, for that foreign key, and then by chain",
	"audit_logs_org_id_fkey":               "the chain is the organisation (audit_logs_org_is_chain_check); this one says whether it is still there",
	"audit_logs_org_id_idx":                "for that foreign key",
}

// keyedOtherwise are the tenants' tables whose rows have no id, and what they are known by within their organisation.
var keyedOtherwise = map[string]string{
	"part_deltas":    "the part and the place in it",
	"pending_events": "the row and the transaction",
	"events":         "the place in the feed",
}

// onePerOrganisation are the tables that have one row for each organisation, so that it alone is the key.
var onePerOrganisation = []string{"audit_chains", "event_heads", "retention_policies", "watch_policies", "watch_rounds"}

func TestX01_OrgIDComesFirst(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	exempt := "('" + strings.Join(slices.Collect(maps.Keys(notByOrganisation)), "', '") + "')"
	keyed := "('" + strings.Join(slices.Collect(maps.Keys(keyedOtherwise)), "', '") + "')"
	none(t, conn, "a tenants' table has a primary key that starts with the organisation (or its chain), and each row has one", `
		SELECT t.name FROM tables t WHERE t.tenant IS NOT NULL
		  AND (NOT EXISTS (SELECT FROM constraints p WHERE p.conrelid = t.oid AND p.contype = 'p' AND p.cols[1] = t.tenant
		                   AND CASE WHEN t.name IN ('`+strings.Join(onePerOrganisation, "', '")+`') THEN p.cols[2] IS NULL ELSE t.control_plane OR t.name IN `+keyed+` OR p.cols[2] = 'id' END)
		    OR EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name = t.tenant AND NOT c.required))`)
	none(t, conn, "the organisation comes first in every index", "SELECT x.name FROM indexes x JOIN tables t ON t.oid = x.indrelid WHERE x.cols[1] <> t.tenant AND x.name NOT IN "+exempt)
	none(t, conn, "the organisation comes first in every foreign key, on both sides (but to what is only looked up)", `
		SELECT f.name FROM constraints f
		JOIN tables t ON t.oid = f.conrelid AND t.tenant IS NOT NULL JOIN tables r ON r.oid = f.confrelid
		JOIN columns c ON c.oid = f.confrelid AND c.num = f.confkey[1]
		WHERE f.contype = 'f' AND r.oid NOT IN (SELECT oid FROM lookups) AND f.name NOT IN `+exempt+`
		  AND (f.cols[1] <> t.tenant OR c.name <> CASE r.name WHEN 'organizations' THEN 'id' ELSE coalesce(r.tenant, '') END)`)
	none(t, conn, "the control plane refers to no tenant's table", `
		SELECT f.name FROM constraints f JOIN tables t ON t.oid = f.conrelid JOIN tables r ON r.oid = f.confrelid
		WHERE f.contype = 'f' AND t.control_plane AND NOT r.control_plane`)
	none(t, conn, "every table belongs to an organisation, to the control plane, or is only looked up (and the sequencer's office is everybody's)",
		"SELECT name FROM tables WHERE tenant IS NULL AND NOT control_plane AND name <> 'event_sequencers' AND oid NOT IN (SELECT oid FROM lookups) AND name !~ "+ofMigrations)
	for name := range notByOrganisation {
		if !get[bool](t, conn, fmt.Sprintf("SELECT EXISTS (SELECT FROM constraints WHERE name = '%s') OR EXISTS (SELECT FROM indexes WHERE name = '%[1]s')", name)) {
			t.Errorf("there is no %s any more", name)
		}
	}
}

func TestX01_RowLevelSecurityIsOnEverywhere(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "a table of tenants, organizations and accounts have row level security, forced, and say what hub_app sees", `
		SELECT t.name FROM tables t
		WHERE (t.tenant IS NOT NULL OR t.control_plane)
		  AND NOT (t.rls AND t.forced AND EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND p.polroles = ARRAY['hub_app'::regrole::oid] AND p.polpermissive))`)
	const (
		ownOrganisation = "(org_id = ( SELECT current_org_id() AS current_org_id))"
		ownChain        = "CASE WHEN (chain_id = '00000000-0000-0000-0000-000000000000'::uuid) THEN ( SELECT is_platform_admin() AS is_platform_admin) ELSE (chain_id = ( SELECT current_org_id() AS current_org_id)) END"
	)
	none(t, conn, "what hub_app sees of a tenants' table is its organisation's rows (of the audit log the platform's too, as a platform admin), and nothing else lets it see more", `
		SELECT p.polname FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
		CROSS JOIN LATERAL (SELECT CASE t.tenant WHEN 'org_id' THEN $$`+ownOrganisation+`$$ ELSE $$`+ownChain+`$$ END AS own) o
		WHERE t.tenant IS NOT NULL AND p.polroles && ARRAY['hub_app'::regrole::oid, 0::oid] AND p.polpermissive
		  AND (p.polcmd <> '*' OR p.polwithcheck IS NOT NULL OR btrim(regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\s+', ' ', 'g')) IS DISTINCT FROM o.own)`)
	none(t, conn, "what narrows that is called <table>_limited (or _undeleted: the rows of deleted sessions), is for every statement and judges what is written as what is read", `
		SELECT p.polname FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
		WHERE p.polname IN (t.name || '_limited', t.name || '_undeleted') AND (p.polpermissive OR p.polcmd <> '*' OR p.polwithcheck IS NOT NULL OR p.polroles <> ARRAY['hub_app'::regrole::oid])
		   OR p.polname NOT IN (t.name || '_limited', t.name || '_undeleted') AND NOT p.polpermissive`)
	none(t, conn, "whatever belongs to a project is out of reach for a key that is limited to others", `
		SELECT t.name FROM tables t
		WHERE (t.name = 'projects' OR EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name IN ('project_id', 'session_id') AND c.required))
		  AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = t.oid AND p.polname = t.name || '_limited' AND pg_get_expr(p.polqual, p.polrelid) LIKE '%current_project_ids()%')`)
	none(t, conn, "policies name whom they are for", `
		SELECT p.polname FROM pg_policy p
		WHERE EXISTS (SELECT FROM unnest(p.polroles) r WHERE r = 0 OR r NOT IN (SELECT oid FROM pg_roles WHERE rolname IN ('hub_app', 'hub_auth', 'hub_system', 'hub_search')))`)
	none(t, conn, "views see with their reader's rights", `
		SELECT c.relname::text FROM pg_class c
		WHERE c.relnamespace = 'public'::regnamespace AND (c.relkind = 'm' OR c.relkind = 'v' AND NOT coalesce(c.reloptions @> '{security_invoker=true}' OR c.reloptions @> '{security_invoker=on}', false))`)
}

func TestX01_RolesHaveNoMoreThanTheyNeed(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	const roles = "('hub_app', 'hub_auth', 'hub_system', 'hub_search')"
	none(t, conn, "hub's roles are no superusers, bypass nothing, and make neither roles nor databases", `
		SELECT rolname::text FROM pg_roles WHERE rolname IN `+roles+` AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)`)
	if got := get[int](t, conn, "SELECT count(*) FROM pg_roles WHERE rolname IN "+roles); got != 4 {
		t.Errorf("%d roles", got)
	}
	none(t, conn, "nobody signs in as a role that owns functions", "SELECT rolname::text FROM pg_roles WHERE rolname IN ('hub_auth', 'hub_system', 'hub_search') AND rolcanlogin")
	none(t, conn, "hub's roles are members of none", `
		SELECT format('%s of %s', m.member::regrole, m.roleid::regrole) FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member WHERE r.rolname IN `+roles)
	none(t, conn, "hub's roles create nothing in the schema", "SELECT rolname::text FROM pg_roles WHERE rolname IN "+roles+" AND has_schema_privilege(oid, 'public', 'CREATE')")
	none(t, conn, "hub_app owns nothing", "SELECT pg_describe_object(classid, objid, objsubid) FROM pg_shdepend WHERE deptype = 'o' AND refclassid = 'pg_authid'::regclass AND refobjid = 'hub_app'::regrole")
	none(t, conn, "hub's roles own functions and nothing else", `
		SELECT pg_describe_object(classid, objid, objsubid) FROM pg_shdepend
		WHERE deptype = 'o' AND refclassid = 'pg_authid'::regclass AND refobjid IN (SELECT oid FROM pg_roles WHERE rolname IN `+roles+`) AND classid <> 'pg_proc'::regclass`)
	none(t, conn, "nobody but an owner truncates, refers to or triggers on tables", `
		SELECT format('%s: %s', t.name, r.rolname) FROM tables t, pg_roles r WHERE r.rolname IN `+roles+` AND has_table_privilege(r.oid, t.oid, 'TRUNCATE,REFERENCES,TRIGGER')`)
	none(t, conn, "PUBLIC has no rights on tables, and none to create in the schema", `
		SELECT t.name FROM tables t JOIN pg_class c ON c.oid = t.oid, aclexplode(c.relacl) a WHERE a.grantee = 0
		UNION ALL SELECT format('%s (%s)', c.tab, c.name) FROM columns c JOIN pg_attribute p ON p.attrelid = c.oid AND p.attnum = c.num, aclexplode(p.attacl) a WHERE a.grantee = 0
		UNION ALL SELECT 'public' FROM pg_namespace n, aclexplode(n.nspacl) a WHERE n.nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE'`)
}

// forEverybody are the functions with their owner's rights that anybody may call, and why.
var forEverybody = map[string]string{
	"hub_is_bootstrapped()": "says one bit, before there is anybody to ask",
}

func TestX01_DefinerFunctionsAreFenced(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "a function with its owner's rights belongs to a role made for that, not to the schema's owner", `
		SELECT signature || ' of ' || owner FROM functions WHERE prosecdef <> (owner IN ('hub_auth', 'hub_system', 'hub_search'))`)
	none(t, conn, "a function that reads tables, or has its owner's rights, says where names are looked up: else a temporary table stands in", `
		SELECT f.signature FROM functions f
		WHERE NOT coalesce(f.proconfig @> '{"search_path=pg_catalog, public, pg_temp"}', false)
		  AND (f.prosecdef OR f.prosqlbody IS NULL AND (
		       f.prosrc ~* '\mexecute\M' OR EXISTS (SELECT FROM tables t WHERE f.prosrc ~* ('\m(from|join|into|update)\s+(only\s+)?' || t.name || '\M'))))`)
	if got := list[string](t, conn, `
		SELECT f.signature FROM functions f
		WHERE f.prosecdef AND EXISTS (SELECT FROM aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) a WHERE a.grantee = 0)
		ORDER BY 1`); !slices.Equal(got, slices.Sorted(maps.Keys(forEverybody))) {
		t.Errorf("PUBLIC may call %v", got)
	}
}

// notAudited are the tables whose changes leave no audit entry, and why.
var notAudited = map[string]string{
	"audit_chains": "the log itself", "audit_logs": "the log itself", "idempotency_keys": "answers that are kept for a day; what was done is on record by itself",
	"projects": "the work", "workspaces": "the work", "sessions": "the work", "messages": "the work", "parts": "the work", "part_deltas": "the work", "search_entries": "the work, as search reads it",
	"pending_events": "the feed, which tells of what has changed", "event_heads": "the feed", "events": "the feed",
	"tasks": "the work", "task_dependencies": "the work", "task_notes": "the work", "mappings": "the work", "task_status_changes": "a log itself",
	"detections": "the work", "anomaly_types": "the work: what detections are called", "watch_rounds": "when the watcher was at work",
	"spokes": "the work", "operation_specs": "the work", "calls": "the work", "call_edge_rows": "the work", "call_payloads": "the work",
}

func TestW12_ChangesOfWhoMayDoWhatAreAudited(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	except := "('" + strings.Join(slices.Collect(maps.Keys(notAudited)), "', '") + "')"
	// INSERT, UPDATE and DELETE of each row, at the end of the transaction. A retention or watch policy comes and goes with its organisation.
	const deferred = `
		SELECT g.tgrelid FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid JOIN tables t ON t.oid = g.tgrelid
		WHERE f.proname = 'record_audit' AND g.tgenabled = 'O' AND g.tgdeferrable AND g.tginitdeferred AND g.tgqual IS NULL AND g.tgattr = ''
		  AND g.tgtype & 29 = CASE WHEN t.name IN ('retention_policies', 'watch_policies') THEN 17 ELSE 29 END`
	none(t, conn, "a table of tenants or of the control plane is audited, or says why not", "SELECT name FROM tables WHERE (tenant IS NOT NULL OR control_plane) AND oid NOT IN ("+deferred+") AND name NOT IN "+except)
	none(t, conn, "what says why it is not audited is not", "SELECT name FROM tables WHERE oid IN (SELECT tgrelid FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid WHERE f.proname = 'record_audit') AND name IN "+except)
	none(t, conn, "its name says so, and no other trigger's", `
		SELECT g.tgname::text FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid JOIN tables t ON t.oid = g.tgrelid
		WHERE NOT g.tgisinternal AND (f.proname = 'record_audit') <> (g.tgname = t.name || '_audit')`)
	none(t, conn, "nothing is truncated past its triggers", "SELECT t.name FROM tables t, pg_roles r WHERE r.rolname IN ('hub_app', 'hub_auth', 'hub_system', 'hub_search') AND has_table_privilege(r.oid, t.oid, 'TRUNCATE')")
}

func TestS04_ExtensionsLiveApart(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "extensions are in a schema of their own", "SELECT e.extname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE n.nspname NOT IN ('extensions', 'pg_catalog')")
	none(t, conn, "which is only for what searches, and where nobody creates", `
		SELECT r.rolname::text FROM pg_roles r
		WHERE r.rolname IN ('hub_app', 'hub_auth', 'hub_system', 'hub_search') AND (has_schema_privilege(r.oid, 'extensions', 'CREATE') OR has_schema_privilege(r.oid, 'extensions', 'USAGE') <> (r.rolname = 'hub_search'))`)
}

func TestW22_TimesAndRevisions(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "every table has created_at NOT NULL DEFAULT now()", `
		SELECT t.name FROM tables t WHERE NOT EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name = 'created_at' AND c.required AND c.def = 'now()')`)
	none(t, conn, "every table has updated_at NOT NULL DEFAULT now(), unless nobody updates it", `
		SELECT t.name FROM tables t
		WHERE NOT EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name = 'updated_at' AND c.required AND c.def = 'now()')
		  AND (EXISTS (SELECT FROM columns c WHERE c.oid = t.oid AND c.name = 'updated_at')
		       OR EXISTS (SELECT FROM unnest('{hub_app,hub_auth,hub_system,hub_search}'::text[]) r WHERE has_any_column_privilege(r, t.oid, 'UPDATE')))`)
	none(t, conn, "a trigger moves updated_at", `
		SELECT c.tab FROM columns c
		WHERE c.name = 'updated_at' AND c.tab !~ `+ofMigrations+` AND NOT EXISTS (
			SELECT FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid
			WHERE g.tgrelid = c.oid AND g.tgtype & 19 = 19 AND g.tgenabled = 'O' AND f.proname IN ('touch_row', 'set_updated_at'))`)
	none(t, conn, "a trigger counts revisions", `
		SELECT c.tab FROM columns c
		WHERE c.name = 'revision' AND NOT (c.required AND c.def = '1' AND c.type = 'integer' AND EXISTS (
			SELECT FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid WHERE g.tgrelid = c.oid AND g.tgtype & 19 = 19 AND g.tgenabled = 'O' AND f.proname = 'touch_row'))`)
	none(t, conn, "no column of a table with updated_at changes unnoticed", `
		SELECT format('%s.%s', c.tab, c.name) FROM columns c
		WHERE NOT c.generated AND c.tab !~ `+ofMigrations+` AND EXISTS (SELECT FROM columns u WHERE u.oid = c.oid AND u.name = 'updated_at')
		  AND NOT EXISTS (
			SELECT FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid
			WHERE g.tgrelid = c.oid AND g.tgtype & 19 = 19 AND g.tgattr = '' AND f.proname IN ('touch_row', 'set_updated_at', 'refuse_change')
			  AND (g.tgqual IS NULL OR pg_get_triggerdef(g.oid) ~ ('\mold\.(\*|' || c.name || '\M)')))`)
	none(t, conn, "who inserts does not choose updated_at or revision", `
		SELECT format('%s.%s', c.tab, c.name) FROM columns c WHERE c.name IN ('updated_at', 'revision') AND has_column_privilege('hub_app', c.oid, c.num, 'INSERT')`)
	none(t, conn, "what requests may update keeps its id and its time of creation", `
		SELECT t.name FROM tables t
		WHERE has_any_column_privilege('hub_app', t.oid, 'UPDATE') AND NOT EXISTS (
			SELECT FROM pg_trigger g JOIN functions f ON f.oid = g.tgfoid
			WHERE g.tgrelid = t.oid AND g.tgname = t.name || '_identity_immutable' AND f.proname = 'refuse_change' AND pg_get_triggerdef(g.oid) LIKE '%old.created_at%')`)
}

func TestC02_EveryIdIsAUUIDv7(t *testing.T) {
	t.Parallel()
	none(t, catalog(t), "a column id is NOT NULL DEFAULT hub_uuidv7(), and a CHECK says so", `
		SELECT c.tab FROM columns c
		WHERE c.name = 'id' AND NOT (c.required AND c.type = 'uuid' AND c.def = 'hub_uuidv7()' AND EXISTS (
			SELECT FROM constraints k WHERE k.conrelid = c.oid AND k.name = c.tab || '_id_version_check' AND pg_get_constraintdef(k.oid) = 'CHECK (is_uuidv7(id))'))`)
}

func TestW01_DataAndMetadata(t *testing.T) {
	t.Parallel()
	none(t, catalog(t), "data and metadata are NOT NULL DEFAULT '{}', and a CHECK says what they hold", `
		SELECT format('%s.%s', c.tab, c.name) FROM columns c
		WHERE c.name IN ('data', 'metadata') AND NOT (c.required AND c.type = 'jsonb' AND c.def = '''{}''::jsonb' AND EXISTS (
			SELECT FROM constraints k WHERE k.conrelid = c.oid AND k.contype = 'c'
			  AND (c.name = 'data' AND k.name = c.tab || '_data_object_check' AND pg_get_constraintdef(k.oid) = 'CHECK ((jsonb_typeof(data) = ''object''::text))'
			       OR c.name = 'metadata' AND k.name = c.tab || '_metadata_check' AND pg_get_constraintdef(k.oid) = 'CHECK (is_metadata(metadata))')))`)
}

func TestS06_WhatDoesNotSpeakForItselfIsExplained(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "every table has a comment", "SELECT name FROM tables WHERE coalesce(obj_description(oid, 'pg_class'), '') = ''")
	none(t, conn, "every function has a comment", "SELECT signature FROM functions WHERE coalesce(obj_description(oid, 'pg_proc'), '') = ''")
	none(t, conn, "every column of JSON, bytes or raw text has a comment", `
		SELECT format('%s.%s', tab, name) FROM columns
		WHERE (type IN ('json', 'jsonb', 'bytea') OR name IN ('data', 'metadata', 'raw')) AND coalesce(col_description(oid, num), '') = '' AND tab !~ `+ofMigrations)
}

// notUUIDs are columns named *_id that hold somebody else's ids.
var notUUIDs = []string{"request_id", "source_id", "source_parent_id"}

func TestW14_Names(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	none(t, conn, "a table is a plural in snake_case", "SELECT name FROM tables WHERE name !~ '^[a-z]+(_[a-z]+)*s$'")
	none(t, conn, "a column is in snake_case", "SELECT tab || '.' || name FROM columns WHERE name !~ '^[a-z]+[0-9]*(_[a-z0-9]+)*$'")
	none(t, conn, "role is a message's author and nothing else", "SELECT tab || '.' || name FROM columns WHERE name ~ '^roles?$' AND tab <> 'messages'")
	none(t, conn, "a point in time is a timestamptz and its name ends with _at", "SELECT tab || '.' || name FROM columns WHERE (name ~ '_at$') <> (type = 'timestamp with time zone') OR type ~ '^(timestamp without|date$|time )'")
	none(t, conn, "an id is a uuid, unless it is a source's", "SELECT tab || '.' || name FROM columns WHERE name ~ '(^|_)id$' AND (type <> 'uuid') <> (name IN ('"+strings.Join(notUUIDs, "', '")+"'))")
	none(t, conn, "text has no length in its type, and JSON is jsonb", "SELECT tab || '.' || name FROM columns WHERE type ~ '^(character|json$)'")
	none(t, conn, "constraints are named after their table and kind", `
		SELECT name FROM constraints
		WHERE name !~ CASE contype WHEN 'p' THEN '^' || tab || '_pkey$' WHEN 'f' THEN '^' || tab || '_[a-z_]+_fkey$' WHEN 'u' THEN '^' || tab || '_[a-z_]+_key$'
		                           WHEN 'c' THEN '^' || tab || '_[a-z0-9_]+_check$' WHEN 't' THEN '^' || tab || '_[a-z_]+$' ELSE '^$' END`)
	none(t, conn, "indexes are named after their table and kind", `
		SELECT name FROM indexes WHERE name !~ ('^' || tab || CASE WHEN indisprimary THEN '_pkey$' WHEN indisunique THEN '_[a-z_]+_key$' ELSE '_[a-z_]+_idx$' END)`)
	none(t, conn, "triggers and policies are named after their table", `
		SELECT g.tgname::text FROM pg_trigger g JOIN tables t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal AND NOT starts_with(g.tgname, t.name || '_')
		UNION ALL SELECT p.polname::text FROM pg_policy p JOIN tables t ON t.oid = p.polrelid WHERE NOT starts_with(p.polname, t.name || '_')`)
	none(t, conn, "what requests may do is said by the policy <table>_tenant, or _visible where it is more than the organisation's rows, and narrowed by _limited", `
		SELECT p.polname::text FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
		WHERE p.polroles = ARRAY['hub_app'::regrole::oid] AND p.polname::text NOT IN (t.name || '_limited', t.name || '_undeleted', t.name || CASE WHEN t.tenant = 'org_id' THEN '_tenant' ELSE '_visible' END)`)
	none(t, conn, "a rule's name is one rule's", "SELECT name FROM rules GROUP BY name HAVING count(*) > 1")
}

// ruleNames are the rules that the catalog knows, those of foreign keys twice.
func ruleNames(t testing.TB, conn *pgx.Conn) []string {
	t.Helper()
	return list[string](t, conn, `
		SELECT r.name || s.suffix FROM rules r
		JOIN (VALUES (''), ('_in_use')) s(suffix) ON s.suffix = '' OR EXISTS (SELECT FROM constraints c WHERE c.name = r.name AND c.contype = 'f')
		WHERE r.name !~ `+ofMigrations+` ORDER BY (r.name || s.suffix) COLLATE "C"`)
}

func TestX02_TheGeneratedRulesAreTheCatalogs(t *testing.T) {
	t.Parallel()
	difference(t, "rules in the database that gen/db lacks (make generate)", "rules in gen/db that the database lacks (make generate)",
		ruleNames(t, catalog(t)), slices.Sorted(slices.Values(db.Rules)))
}

func difference(t testing.TB, onlyA, onlyB string, a, b []string) {
	t.Helper()
	for _, c := range []struct {
		what   string
		of, in []string
	}{{onlyA, a, b}, {onlyB, b, a}} {
		rest := slices.DeleteFunc(slices.Clone(c.of), func(s string) bool { return slices.Contains(c.in, s) })
		if len(rest) > 0 {
			t.Errorf("%s:\n\t%s", c.what, strings.Join(rest, "\n\t"))
		}
	}
}

// A rule has a case in the test of its domain, and a foreign key says there what becomes of its rows as well.
func TestX02_EveryRuleHasACase(t *testing.T) {
	t.Parallel()
	conn := catalog(t)
	const restricting = "SELECT name || '_in_use' FROM constraints WHERE contype = 'f' AND confdeltype IN ('r', 'a')"
	const tenants = `
		SELECT p.polname::text FROM pg_policy p JOIN tables t ON t.oid = p.polrelid
		WHERE p.polroles = ARRAY['hub_app'::regrole::oid] AND p.polname <> t.name || '_undeleted' AND has_any_column_privilege('hub_app', t.oid, 'INSERT')`
	rules := list[string](t, conn, "SELECT name FROM rules WHERE name !~ "+ofMigrations+" UNION ALL "+restricting+" UNION ALL "+tenants+" ORDER BY 1")
	var cases []string
	for _, c := range ruleCases {
		cases = append(cases, c.rule)
	}
	difference(t, "rules without a case", "cases of rules that there are not", rules, cases)

	cases = nil
	for _, c := range deleteCases {
		cases = append(cases, c.fk)
	}
	difference(t, "foreign keys that do something when their target is deleted, without a case", "cases of foreign keys that do nothing",
		list[string](t, conn, "SELECT name FROM constraints WHERE contype = 'f' AND confdeltype NOT IN ('r', 'a') ORDER BY 1"), cases)
}

// rowsOf are the tables that requests can reach, and the condition that a row is @org's.
func rowsOf(t testing.TB, conn *pgx.Conn) [][2]string {
	t.Helper()
	tables := [][2]string{{"accounts", "id IN (@owner, @co_owner, @admin, @member)"}, {"organizations", "id = @org"}}
	for _, table := range list[string](t, conn, "SELECT name || ' ' || tenant FROM tables WHERE tenant IS NOT NULL ORDER BY name") {
		name, tenant, _ := strings.Cut(table, " ")
		tables = append(tables, [2]string{name, tenant + " = @org"})
	}
	return tables
}

func TestX02_EveryTableHasAFixture(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	for _, table := range rowsOf(t, w.hub) {
		if got := get[string](t, w.hub, fmt.Sprintf("SELECT (count(*) FILTER (WHERE %s) > 0)::text || ' ' || (count(*) FILTER (WHERE NOT %[1]s) > 0)::text FROM %s", table[1], table[0])); got != "true true" {
			t.Errorf("%s: rows of @org, rows of @other_org: %s", table[0], got)
		}
	}
}

func TestX02_RequiredColumns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	for _, column := range list[string](t, w.hub, "SELECT tab || '.' || name FROM columns WHERE required AND NOT generated AND tab !~ "+ofMigrations+" ORDER BY 1") {
		table, name, _ := strings.Cut(column, ".")
		// No triggers, so that none refuses first.
		const before = "SET LOCAL session_replication_role = replica"
		_, err := attempt(t, w.hub, before, fmt.Sprintf("UPDATE %s SET %s = NULL", table, name))
		refuses(t, err, "23502", "")
		if tag, err := attempt(t, w.hub, before, fmt.Sprintf("UPDATE %s SET %s = %[2]s", table, name)); err != nil || tag.RowsAffected() == 0 {
			t.Errorf("%s: %s %v", column, tag, err)
		}
	}
}

func TestX01_NothingOfAnotherOrganisationIsThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	other := w.connect(t, "other_org", "other_owner")
	platform := w.connect(t, "other_org", "other_owner") // its admins see the rows of organisations and accounts, and nothing that lies under them
	exec(t, platform, acting("other_org", "other_owner", false, "platform", "'on'"))
	nobody := connect(t, w.url)
	for _, table := range rowsOf(t, w.hub) {
		name, mine := table[0], table[1]
		count := fmt.Sprintf("SELECT count(*) FROM %s WHERE %s", name, mine)
		if got := get[int](t, w.app, count); got == 0 {
			t.Errorf("%s: @org sees nothing of its own", name)
		}
		if got := get[int](t, other, count); got != 0 {
			t.Errorf("%s: @other_org sees %d rows of @org", name, got)
		}
		if got := get[int](t, platform, count); (got != 0) != (name == "accounts" || name == "organizations") {
			t.Errorf("%s: a platform admin elsewhere sees %d rows of @org", name, got)
		}
		if got := get[int](t, nobody, "SELECT count(*) FROM "+name); got != 0 {
			t.Errorf("%s: nobody sees %d rows", name, got)
		}

		updatable := list[string](t, w.hub, "SELECT name FROM columns WHERE tab = '"+name+"' AND has_column_privilege('hub_app', oid, num, 'UPDATE') ORDER BY num DESC LIMIT 1")
		statements := []string{fmt.Sprintf("DELETE FROM %s WHERE %s", name, mine)}
		if len(updatable) > 0 {
			statements = append(statements, fmt.Sprintf("UPDATE %s SET %s = %[2]s WHERE %s", name, updatable[0], mine))
		}
		for _, statement := range statements {
			privilege, _, _ := strings.Cut(statement, " ")
			if privilege == "DELETE" && !get[bool](t, w.hub, fmt.Sprintf("SELECT has_table_privilege('hub_app', '%s', 'DELETE')", name)) {
				_, err := attempt(t, w.app, "", statement)
				refuses(t, err, "42501", "")
				continue
			}
			strangers := map[string]*pgx.Conn{"@other_org": other, "nobody": nobody}
			if name != "accounts" && name != "organizations" {
				strangers["a platform admin elsewhere"] = platform
			}
			for who, conn := range strangers {
				if tag, err := attempt(t, conn, "", statement); err != nil || tag.RowsAffected() != 0 {
					t.Errorf("%s as %s: %s %v", statement, who, tag, err)
				}
			}
			// It reaches @org's rows, unless something refers to them or a rule (by its name) is in the way.
			tag, err := attempt(t, w.app, "", statement)
			var pgErr *pgconn.PgError
			if err == nil && tag.RowsAffected() == 0 || err != nil && (!errors.As(err, &pgErr) || pgErr.ConstraintName == "") {
				t.Errorf("%s as @org: %s %v", statement, tag, err)
			}
		}
	}
	exec(t, w.app, "SET row_security = off")
	_, err := attempt(t, w.app, "", "SELECT FROM sessions")
	refuses(t, err, "42501", "")
}

func TestW22_EveryChangeMovesUpdatedAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, views)
	for _, table := range list[string](t, w.hub, "SELECT tab FROM columns WHERE name = 'updated_at' AND tab !~ "+ofMigrations+" ORDER BY tab") {
		t.Run(table, func(t *testing.T) {
			has := func(column string) bool {
				return get[bool](t, w.hub, fmt.Sprintf("SELECT EXISTS (SELECT FROM columns WHERE tab = '%s' AND name = '%s')", table, column))
			}
			change := "metadata = metadata || jsonb_build_object('_n', jsonb_build_object('n', clock_timestamp()))"
			same := "metadata = metadata"
			which := "true"
			switch {
			case table == "accounts":
				which = "kind <> 'system'"
			case table == "audit_chains": // forward only, to an entry that is there
				change = "anchor_position = anchor_position + 1, anchor_hash = (SELECT l.hash FROM audit_logs l WHERE (l.chain_id, l.position) = (audit_chains.chain_id, audit_chains.anchor_position + 1))"
				same = "anchor_position = anchor_position"
				which = "chain_id = @org"
			case table == "secret_rotations":
				change, same, which = "rotated = rotated + 1", "rotated = rotated", "status = 'running'"
			case table == "pending_events", table == "event_heads", table == "event_sequencers":
				column := map[string]string{"pending_events": "text_offset", "event_heads": "last_position", "event_sequencers": "lease_expires_at"}[table]
				change = column + " = " + map[string]string{"pending_events": "coalesce(text_offset, 0) + 1", "event_heads": "last_position + 1", "event_sequencers": "clock_timestamp()"}[table]
				same = column + " = " + column
			case table == "watch_rounds":
				change, same = "watched_at = clock_timestamp()", "watched_at = watched_at"
			case !has("metadata"):
				t.Fatal("a table without metadata: say here what can be changed in it")
			}
			revision := "0"
			if has("revision") {
				revision = "revision"
			}
			exec(t, w.hub, "BEGIN")
			defer exec(t, w.hub, "ROLLBACK")
			row := get[string](t, w.hub, fmt.Sprintf("SELECT format('ctid = %%L', ctid) FROM %s WHERE %s LIMIT 1", table, which))
			var updated string
			var revised int
			update := func(set string) (moved bool, revisions int) {
				t.Helper()
				if set != "" {
					row = get[string](t, w.hub, fmt.Sprintf("UPDATE %s SET %s WHERE %s RETURNING format('ctid = %%L', ctid)", table, set, row))
				}
				got := get[string](t, w.hub, fmt.Sprintf("SELECT to_char(updated_at, 'YYYY-MM-DD HH24:MI:SS.US') || '/' || %s FROM %s WHERE %s", revision, table, row))
				before, revisedBefore := updated, revised
				var number string
				updated, number, _ = strings.Cut(got, "/")
				var err error
				if revised, err = strconv.Atoi(number); err != nil {
					t.Fatal(err)
				}
				// The values that the cases below try to set.
				if updated == "" || updated > "2090" || updated < "2000" || revised == 99 {
					t.Errorf("SET %s was obeyed: %s %d", set, updated, revised)
				}
				return updated > before, revised - revisedBefore
			}
			update("")
			one := 0
			if revision == "revision" {
				one = 1
			}
			type step struct {
				set       string
				moved     bool
				revisions int
			}
			steps := []step{
				{change, true, one},
				{change, true, one}, // in the same transaction, where now() stands still
				{same, false, 0},
			}
			for _, value := range []string{"'2099-01-01'", "'1999-01-01'", "'infinity'", "'-infinity'"} {
				alone := one
				if table == "sessions" || table == "api_keys" || table == "client_secrets" { // an update of the times alone is activity (X10), use, or another key (C11), and no revision
					alone = 0
				}
				steps = append(steps, step{"updated_at = " + value, true, alone}, step{change + ", updated_at = " + value, true, one})
			}
			if one == 1 {
				steps = append(steps, step{"revision = 99", true, 1}, step{change + ", revision = 99", true, 1})
			}
			for _, s := range steps {
				if moved, revisions := update(s.set); moved != s.moved || revisions != s.revisions {
					t.Errorf("SET %s: updated_at moved: %v, revisions: %d, want %v, %d", s.set, moved, revisions, s.moved, s.revisions)
				}
			}
		})
	}
}
