package sql_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const newEntry = "INSERT INTO search_entries (org_id, session_id, part_id, vector, %s) VALUES (@org, @session, @part, '', ??)"

const searchFixture = `
INSERT INTO search_entries (org_id, session_id, vector) VALUES (@org, @imported, 'word'), (@other_org, @other_session, 'word');`

var searchRules = []ruleCase{
	{rule: "retention_policies_session_days_check", sql: "UPDATE retention_policies SET session_days = ??", bad: []string{"0", "-1", "36501"}, good: []string{"1", "36500", "NULL"}},
	{rule: "search_entries_pkey", hub: true, before: "INSERT INTO search_entries (org_id, id, session_id, vector) VALUES (@org, @new, @session, '')", sql: "INSERT INTO search_entries (org_id, id, session_id, vector) VALUES (@org, ??, @session, '')", bad: []string{"@new"}, good: []string{"@high"}},
	{rule: "search_entries_id_version_check", hub: true, sql: fmt.Sprintf(newEntry, "id"), bad: notUUIDv7, good: uuidv7},
	{rule: "search_entries_part_id_chunk_key", hub: true, before: "INSERT INTO search_entries (org_id, session_id, part_id, chunk, vector) VALUES (@org, @session, @part, 5, '')", sql: fmt.Sprintf(newEntry, "chunk"), bad: []string{"5"}, good: []string{"6"}},
	{rule: "search_entries_chunk_range_check", hub: true, sql: fmt.Sprintf(newEntry, "chunk"), bad: []string{"-1", "125"}, good: []string{"0", "124"}},
	{rule: "search_entries_session_id_fkey", hub: true, sql: "INSERT INTO search_entries (org_id, session_id, vector) VALUES (@org, ??, '')", bad: []string{"@new", "@other_session"}, good: []string{"@session"}},
	{rule: "search_entries_part_id_fkey", hub: true, sql: "INSERT INTO search_entries (org_id, session_id, part_id, vector) VALUES (@org, @session, ??, '')", bad: []string{"@new", "@other_part"}, good: []string{"@part", "NULL"}},
	{
		rule: "search_query_empty", state: "22023", sql: "SELECT search_sessions(??, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10) UNION ALL SELECT NULL",
		bad: []string{"''", "'...'", "'-word'", "'\"\"'", "'or'", "'-a or -b'", "'word or -b'"}, good: []string{"'word'", "'-a word'", "'。word'", "'a or b'"},
	},
}

var searchDeletes = []deleteCase{
	{fk: "search_entries_session_id_fkey", before: "UPDATE sessions SET title = 'word' WHERE id = @session", delete: "DELETE FROM sessions WHERE id = @session", gone: "SELECT NOT EXISTS (SELECT FROM search_entries WHERE session_id = @session)"},
	{fk: "search_entries_part_id_fkey", before: "UPDATE parts SET data = '{\"text\": \"word\"}' WHERE id = @part", delete: "DELETE FROM parts WHERE id = @part", gone: "SELECT NOT EXISTS (SELECT FROM search_entries WHERE part_id = @part)"},
}

func TestX02_SearchRules(t *testing.T) {
	t.Parallel()
	checkRules(t, searchRules)
}

func TestC14_SearchDeletes(t *testing.T) {
	t.Parallel()
	checkDeletes(t, searchDeletes)
}

func TestSearchQueries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ text, found, not string }{
		{"The discounts were applied twice", `discount|discounted|"discounts were"|apply twice|TWICE|the|discount -three|nothing or twice|disc*|app*`, `discount three|"twice applied"|-discount twice|isc*|nothing or three`},
		{"see src/app/discount.ts:42, in last_message_id and fetchUser()", `discount.ts|src/app|app discount|last_message_id|message|message_id|fetchUser|42|"app/discount.ts"|discount.ts:42|src/app/disc*`, `app/src|message_last|fetch|ts.discount`},
		{"don't e-mail a.b@example.com v1.18.33 -5 1e5", `don't|e-mail|mail|a.b@example.com|example|5|1e5|v1.18|v1.18.33`, `18.1.33|example.org`},
		{"Größe der Rechnungen ÄNDERN", `größe|GRÖSSE or Größe|ändern|Rechnungen`, `Rechnung der Größe -ändern|gross`},
		{"Скидка применяется дважды", `скидка|СКИДКА|дважды`, `скид|трижды`},
		{"全文検索の設計を確認する", `全文検索|検索|設計|索の|全|る|"全文検索の設計"|確認 設計|検索 -見積`, `検全|索引|見積|全 見`},
		{"修复折扣计算的错误，然后重新部署。hub的设计", `折扣|折扣计算|错误|部署|然后重新|hub的设计|hub|的`, `错误然后|折计|hub的部`},
		{"ระบบค้นหาข้อความ", `ค้นหา|ข้อความ|ระบบ`, `หาค้น`},
		{"서버가 응답하지 않습니다", `서버|응답|서버가|않습니다`, `버서|응하`},
		{"ｆｕｌｌ　ｗｉｄｔｈ ﾃｽﾄ café", "full width|テスト|café|cafe\u0301", `half`},
		{"a\u0010" + "0b", "a|b", "0b"},
		{strings.Repeat("filler ", 3000) + "needle at the end", `needle|"needle at the end"|filler needle -start`, `"start needle"`},
		{strings.Repeat("x", 7990) + " torn apart phrase", `"torn apart phrase"`, ``},
		{strings.Repeat("filler ", 142_900) + " lost", "filler", "lost"}, // a million characters
	} {
		literal := "jsonb_build_object('text', $1::text)"
		if _, err := w.app.Exec(t.Context(), named("UPDATE parts SET data = "+strings.ReplaceAll(literal, "$1", "$$"+c.text+"$$")+" WHERE id = @part"), pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatal(err)
		}
		for want, queries := range []string{c.not, c.found} {
			for _, query := range strings.Split(queries, "|") {
				if query == "" {
					continue
				}
				if got := get[int](t, w.app, "SELECT count(*) FROM search_sessions($$"+query+"$$, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10)"); got != want {
					t.Errorf("%.60q: %s is found %d times, want %d", c.text, query, got, want)
				}
			}
		}
	}
}

func TestWhatOfAPartIsFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for data, want := range map[string]string{
		`{"text": "one"}`: "one",
		`{"callID": "no", "tool": "no", "state": {"status": "no", "input": {"command": "one", "n": 5, "deep": [{"x": "two"}]}, "output": "three", "title": "four", "error": "five"}}`: "four\ntwo\none\nthree\nfive",
		`{"mime": "no", "url": "data:no", "filename": "one"}`:                 "one",
		`{"prompt": "one", "description": "two", "agent": "no"}`:              "two\none",
		`{"hash": "no", "files": ["one", "two"]}`:                             "one\ntwo",
		`{"attempt": 1, "error": {"name": "no", "data": {"message": "one"}}}`: "one",
		`{"files": "no", "state": "no", "error": [], "source": 5}`:            "",
		`{"state": {"input": "one"}}`:                                         "one",
		`{}`:                                                                  "",
	} {
		if got := get[string](t, w.app, "SELECT part_text('"+data+"')"); got != want {
			t.Errorf("%s: %q, want %q", data, got, want)
		}
	}
}

// The index follows what it indexes, whoever writes.
func TestTheIndexFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	found := func(query string) int {
		t.Helper()
		return get[int](t, w.app, "SELECT coalesce(sum(matches), 0)::int FROM search_sessions('"+query+"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10)")
	}
	expect := func(query string, want int) {
		t.Helper()
		if got := found(query); got != want {
			t.Errorf("%s is found %d times, want %d", query, got, want)
		}
	}
	exec(t, w.app, `INSERT INTO parts (org_id, session_id, message_id, type, data) SELECT @org, @session, @message, 'text', '{"text": "apple pear"}' FROM generate_series(1, 3)`)
	expect("apple", 3)
	exec(t, w.app, `UPDATE parts SET data = '{"text": "pear"}' WHERE data ->> 'text' = 'apple pear'`)
	expect("apple", 0)
	expect("pear", 3)
	before := get[string](t, w.app, "SELECT string_agg(id::text, '' ORDER BY id) FROM search_entries")
	exec(t, w.app, `UPDATE parts SET type = 'x', metadata = '{"_a": {}}' WHERE type = 'text'`)
	if got := get[string](t, w.app, "SELECT string_agg(id::text, '' ORDER BY id) FROM search_entries"); got != before {
		t.Error("what did not change was indexed again")
	}
	exec(t, w.app, "UPDATE sessions SET title = 'pear tree' WHERE id = @session")
	expect("pear", 4)
	exec(t, w.app, "UPDATE sessions SET title = 'tree' WHERE id = @session")
	expect("pear", 3)
	exec(t, w.app, "UPDATE sessions SET title = '' WHERE id = @session")
	expect("tree", 0)
	exec(t, w.app, "DELETE FROM messages WHERE id = @message")
	expect("pear", 0)
	if got := get[int](t, w.hub, "SELECT count(*) FROM search_entries WHERE session_id = @session"); got != 0 {
		t.Errorf("%d entries are left", got)
	}

	// Another organisation's are another's, and what is deleted is gone at once.
	exec(t, w.hub, "UPDATE sessions SET title = 'cherry'")
	expect("cherry", 3)
	exec(t, w.hub, "UPDATE sessions SET deleted_at = now() WHERE id = @child")
	expect("cherry", 2)
	nobody := connect(t, w.url)
	if got := get[int](t, nobody, "SELECT count(*) FROM search_sessions('cherry', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10)"); got != 0 {
		t.Errorf("nobody finds %d", got)
	}
	for _, sql := range []string{"DELETE FROM search_entries", "UPDATE search_entries SET chunk = 1", "INSERT INTO search_entries (org_id, session_id, vector) VALUES (@org, @session, '')"} {
		_, err := attempt(t, w.app, "", sql)
		refuses(t, err, "42501", "")
	}
}

// 100,000 parts: the plan within the function, which runs as hub_search, uses the index, for rare words and for common ones.
func TestSearchUsesItsIndex(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, err := pgx.ParseConfig(w.hub.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	var plans []string
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { plans = append(plans, n.Message) }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	exec(t, conn, `INSERT INTO parts (org_id, session_id, message_id, type, data)
		SELECT CASE WHEN n % 10 = 0 THEN @other_org ELSE @org END::uuid, CASE WHEN n % 10 = 0 THEN @other_session ELSE @session END::uuid, CASE WHEN n % 10 = 0 THEN @other_message ELSE @message END::uuid, 'text',
		       jsonb_build_object('text', format('word%s of part %s%s', n % 1000, n, CASE WHEN n % 10000 = 1 THEN ' needle' WHEN n % 20 = 3 THEN ' twentieth' END))
		FROM generate_series(1, 100000) n`)
	exec(t, conn, "ANALYZE search_entries; ANALYZE sessions")
	exec(t, conn, `LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_nested_statements = on; SET auto_explain.log_level = notice; SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off;
		SELECT set_config('hub.org_id', @org, false); SET ROLE hub_app`)
	for query, want := range map[string]int{"needle": 10, "word7": 100, "twentieth": 5000, `"of part"  twentieth`: 5000, "twentieth -word3": 4900, "need*": 10, "needle or word7": 110} {
		plans = nil
		if got := get[int](t, conn, "SELECT coalesce(sum(matches), 0)::int FROM search_sessions('"+query+"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10)"); got != want {
			t.Errorf("%s is found %d times, want %d", query, got, want)
		}
		all := strings.Join(plans, "\n")
		if !regexp.MustCompile(`Bitmap Index Scan on search_entries_vector_idx[^\n]*\n\s*Index Cond: [^\n]*org_id = [^\n]*vector @@`).MatchString(all) || strings.Contains(all, "Seq Scan on search_entries") {
			t.Errorf("%s:\n%s", query, all)
		}
	}
}

// W09: archived sessions go when their organisation keeps them no longer, in batches, and that is on record.
func TestW09_ArchivedSessionsExpire(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.hub, `
		UPDATE sessions SET archived_at = now() - interval '40 days';
		INSERT INTO sessions (org_id, project_id, parent_id, archived_at, title) SELECT @org, @project, @session, now() - n * interval '1 day', 'old' FROM generate_series(1, 60) n;
		INSERT INTO sessions (org_id, project_id, parent_id, title) VALUES (@org, @project, @session, 'in use')`)
	if got := get[int](t, w.app, "SELECT expire_sessions(1000)"); got != 0 {
		t.Errorf("%d sessions expired without a policy", got)
	}
	exec(t, w.hub, "UPDATE retention_policies SET session_days = 30 WHERE org_id = @org")
	const left = "SELECT count(*) FILTER (WHERE deleted_at IS NULL) || ' ' || count(*) FILTER (WHERE deleted_at IS NULL AND archived_at < now() - interval '30 days') FROM sessions WHERE org_id = @org"
	if got := get[string](t, w.hub, left); got != "64 34" { // three of the fixture's, and 31 to 60 days
		t.Fatal(got)
	}
	for _, want := range []int{20, 14, 0} {
		if got := get[int](t, w.app, "SELECT expire_sessions(20)"); got != want {
			t.Errorf("%d sessions expired, want %d", got, want)
		}
	}
	if got := get[string](t, w.hub, left); got != "30 0" {
		t.Errorf("%s are left", got)
	}
	if got := get[int](t, w.hub, "SELECT count(*) FROM sessions WHERE org_id = @other_org AND deleted_at IS NULL"); got != 1 {
		t.Error("another organisation's went as well")
	}
	if got := get[int](t, w.app, "SELECT count(*) FROM sessions WHERE title = 'in use' AND parent_id IS NULL"); got != 1 {
		t.Error("a session in use did not outlive its parent")
	}
	if got := list[string](t, w.hub, "SELECT concat_ws(' ', action, actor_source, changes ->> 'sessions', jsonb_array_length(changes -> 'ids')) FROM audit_logs WHERE action = 'session.purge' AND org_id = @org ORDER BY position"); strings.Join(got, ", ") != "session.purge worker 20 20, session.purge worker 14 14" {
		t.Errorf("on record is %v", got)
	}
	for get[int](t, w.app, "SELECT purge_deleted_sessions(7)") > 0 {
	}
	if got := get[int](t, w.hub, "SELECT count(*) FROM sessions WHERE org_id = @org"); got != 30 {
		t.Errorf("%d sessions are left", got)
	}
}

// What a key that is limited to projects does not see, it neither finds nor deletes.
func TestX01_LimitedKeysSearchAndDeleteWithinTheirLimits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	exec(t, w.app, "UPDATE sessions SET title = 'needle' WHERE id IN (@session, @child)")
	exec(t, w.app, "INSERT INTO sessions (org_id, project_id, parent_id, id, title) VALUES (@org, @empty_project, @session, @new, 'needle')")
	limited := w.connect(t, "org", "owner")
	exec(t, limited, "SELECT set_config('hub.project_ids', '{' || @project || '}', false)")
	const found = "SELECT count(*) FROM search_sessions('needle', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10)"
	if all, some := get[int](t, w.app, found), get[int](t, limited, found); all != 3 || some != 2 {
		t.Errorf("found are %d, and %d within the limits", all, some)
	}
	if all, some := get[int](t, w.app, "SELECT count(*) FROM search_entries"), get[int](t, limited, "SELECT count(*) FROM search_entries"); all != some+1 {
		t.Errorf("entries: %d, and %d within the limits", all, some)
	}
	if got := get[int](t, limited, "SELECT delete_session(@new, true)"); got != 0 {
		t.Errorf("%d sessions out of reach were deleted", got)
	}
	if got := get[int](t, limited, "SELECT delete_session(@session, true)"); got != 2 {
		t.Errorf("%d sessions were deleted", got)
	}
	if got := get[int](t, w.app, "SELECT count(*) FROM sessions WHERE id = @new AND parent_id IS NULL"); got != 1 {
		t.Error("the child in another project did not stay")
	}
}
