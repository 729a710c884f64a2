package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

type messageBody struct {
	ID, SessionID, Role  string
	SourceID             *string
	Data, Metadata       json.RawMessage
	Revision             int
	CreatedAt, UpdatedAt string
	Parts                []partBody
}

type partBody struct {
	ID, MessageID, Type  string
	SourceID             *string
	Data, Metadata       json.RawMessage
	Revision             int
	CreatedAt, UpdatedAt string
}

func (a answer) messages(t testing.TB) []messageBody {
	t.Helper()
	var list struct{ Items []messageBody }
	a.into(t, &list)
	return list.Items
}

func TestMessagesAreAppendedListedAndRead(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := h.newSession(t)
	path := "/v1/sessions/" + session + "/messages"
	if p := h.page(t, h.admin, path, "id"); len(p.values) != 0 || p.cursor != "" {
		t.Errorf("a new session has %v", p)
	}
	before := h.do(t, "GET", "/v1/sessions/"+session, nil).session(t)

	a := h.do(t, "POST", path, `{"messages":[
		{"role":"user"},
		{"role":"assistant","data":{"cost":1.50e-3},"metadata":{"_m":{"a":1}},"parts":[
			{"type":"text","data":{"text":"\u0000\ud83d"},"metadata":{"_p":{}}},{"type":"of a kind that nobody knows 😀"},{"type":"step-start"}]},
		{"role":"system","parts":[]}]}`).wants(t, 201)
	appended := a.messages(t)
	if len(appended) != 3 {
		t.Fatalf("%s", a.body)
	}
	for i, role := range []string{"user", "assistant", "system"} {
		m := appended[i]
		if m.Role != role || m.SessionID != session || m.SourceID != nil || m.Revision != 1 || m.CreatedAt == "" || m.CreatedAt != m.UpdatedAt || len(m.Parts) != []int{0, 3, 0}[i] {
			t.Errorf("message %d: %+v", i, m)
		}
		if i > 0 && m.ID <= appended[i-1].ID {
			t.Errorf("C02: message %d has the id %s, before it %s", i, m.ID, appended[i-1].ID)
		}
		got := h.do(t, "GET", path+"/"+m.ID, nil).wants(t, 200)
		one, _ := json.Marshal(appended[i])
		again, _ := json.Marshal(func() (m messageBody) { got.into(t, &m); return }())
		wantJSON(t, "message read alone", again, one)
		if got.header.Get("ETag") != `"1"` {
			t.Errorf("ETag %q", got.header.Get("ETag"))
		}
	}
	if string(appended[0].Data) != "{}" || string(appended[0].Metadata) != "{}" {
		t.Errorf("defaults: %+v", appended[0])
	}
	m := appended[1]
	wantJSON(t, "data", m.Data, []byte(`{"cost":1.50e-3}`))
	wantJSON(t, "metadata", m.Metadata, []byte(`{"_m":{"a":1}}`))
	wantJSON(t, "part's data", m.Parts[0].Data, []byte(`{"text":"\u0000\ud83d"}`))
	wantJSON(t, "part's metadata", m.Parts[0].Metadata, []byte(`{"_p":{}}`))
	for i, p := range m.Parts {
		if p.MessageID != m.ID || p.SourceID != nil || p.Revision != 1 || p.Type != []string{"text", "of a kind that nobody knows 😀", "step-start"}[i] {
			t.Errorf("part %d: %+v", i, p)
		}
		if i > 0 && p.ID <= m.Parts[i-1].ID {
			t.Errorf("C02: part %d has the id %s, before it %s", i, p.ID, m.Parts[i-1].ID)
		}
	}
	wantJSON(t, "the list", h.do(t, "GET", path, nil).wants(t, 200).body, a.body)

	// Activity is no revision, so an If-Match on the title does not fail because the agent talks.
	after := h.do(t, "GET", "/v1/sessions/"+session, nil).session(t)
	if after.Revision != before.Revision || after.LastActivityAt <= before.LastActivityAt || after.UpdatedAt <= before.UpdatedAt {
		t.Errorf("after the append: %+v, before %+v", after, before)
	}

	// A message is found in its own session only.
	h.do(t, "GET", path+"/"+uuid.NewString(), nil).refused(t, 404, "message_not_found")
	h.do(t, "GET", path+"/"+m.Parts[0].ID, nil).refused(t, 404, "message_not_found")
	h.do(t, "GET", "/v1/sessions/"+h.newSession(t)+"/messages/"+m.ID, nil).refused(t, 404, "message_not_found")
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/messages/"+m.ID, nil).refused(t, 404, "message_not_found")

	// With the session goes all that is in it.
	h.do(t, "DELETE", "/v1/sessions/"+session, nil).wants(t, 204)
	h.do(t, "GET", path+"/"+m.ID, nil).refused(t, 404, "message_not_found")
	h.do(t, "GET", path, nil).refused(t, 404, "session_not_found")
	h.do(t, "POST", path, `{"messages":[{"role":"user"}]}`).refused(t, 404, "session_not_found")
	if n := h.count(t, "SELECT count(*) FROM parts WHERE session_id = $1", session); n != 0 {
		t.Errorf("%d parts are left", n)
	}
}

func TestMessageBodies(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	messages := func(list string) string { return `{"messages":[` + list + `]}` }
	one := func(more string) string { return messages(`{"role":"user"` + more + `}`) }
	part := func(more string) string {
		return messages(`{"role":"user"},{"role":"user","parts":[{"type":"x"},{"type":"x"` + more + `}]}`)
	}
	many := func(n int, item string) string { return strings.Repeat(item+",", n-1) + item }
	for _, w := range []twins{
		{"messages missing", one(""), `{}`, "", 0, at("/messages")},
		{"no messages", one(""), messages(""), "", 0, at("/messages")},
		{"messages null", one(""), `{"messages":null}`, "", 0, at("/messages")},
		{"messages an object", one(""), `{"messages":{"role":"user"}}`, "", 0, at("/messages")},
		{"a message null", one(""), messages(`null`), "", 0, at("/messages/0")},
		{"too many messages", messages(many(1000, `{"role":"user"}`)), messages(many(1001, `{"role":"user"}`)), "", 0, at("/messages")},
		{"too many parts", one(`,"parts":[` + many(1000, `{"type":"x"}`) + `]`), one(`,"parts":[` + many(1001, `{"type":"x"}`) + `]`), "", 0, at("/messages/0/parts")},
		{"role missing", one(""), messages(`{"role":"user"},{}`), "", 0, at("/messages/1/role")},
		{"role", messages(`{"role":"assistant"}`), messages(`{"role":"Assistant"}`), "", 0, at("/messages/0/role")},
		{"role empty", messages(`{"role":"system"}`), messages(`{"role":""}`), "", 0, at("/messages/0/role")},
		{"role null", one(""), messages(`{"role":null}`), "", 0, at("/messages/0/role")},
		{"role NUL", one(""), messages(`{"role":"user\u0000"}`), "", 0, at("/messages/0/role")},
		{"message id", one(""), one(`,"id":"` + uuid.NewString() + `"`), "", 0, at("/messages/0/id")},
		{"message source", one(""), one(`,"sourceId":"msg_1"`), "", 0, at("/messages/0/sourceId")},
		{"parts null", one(`,"parts":[]`), one(`,"parts":null`), "", 0, at("/messages/0/parts")},
		{"data null", one(`,"data":{}`), one(`,"data":null`), "", 0, at("/messages/0/data")},
		{"data string", one(`,"data":{}`), one(`,"data":"{}"`), "", 0, at("/messages/0/data")},
		{"metadata of a number", one(`,"metadata":{"_a":{}}`), one(`,"metadata":{"_a":1}`), "", 0, at("/messages/0/metadata/_a")},
		{"data with a name twice", one(`,"data":{"a":{"b":1,"c":1}}`), one(`,"data":{"a":{"b":1,"b":1}}`), "invalid_json", 0, at("/messages/0/data/a/b")},
		{"part type missing", part(""), messages(`{"role":"user","parts":[{"data":{}}]}`), "", 0, at("/messages/0/parts/0/type")},
		{"part type empty", messages(`{"role":"user","parts":[{"type":" "}]}`), messages(`{"role":"user","parts":[{"type":""}]}`), "", 0, at("/messages/0/parts/0/type")},
		{"part type length", messages(`{"role":"user","parts":[{"type":"` + strings.Repeat("x", 200) + `"}]}`), messages(`{"role":"user","parts":[{"type":"` + strings.Repeat("x", 201) + `"}]}`), "", 0, at("/messages/0/parts/0/type")},
		{"part type NUL", messages(`{"role":"user","parts":[{"type":"x"}]}`), messages(`{"role":"user","parts":[{"type":"x\u0000"}]}`), "", 0, at("/messages/0/parts/0/type")},
		{"part type lone surrogate", messages(`{"role":"user","parts":[{"type":"\ud83d\ude00"}]}`), messages(`{"role":"user","parts":[{"type":"\ude00"}]}`), "", 0, at("/messages/0/parts/0/type")},
		{"part more", part(""), part(`,"text":"hello"`), "", 0, at("/messages/1/parts/1/text")},
		{"part data", part(`,"data":{"text":"hello"}`), part(`,"data":["hello"]`), "", 0, at("/messages/1/parts/1/data")},
		{"part data of invalid UTF-8", part(`,"data":{"text":"é"}`), part(",\"data\":{\"text\":\"\xe9\"}"), "invalid_json", 0, at("/messages/1/parts/1/data/text")},
		{"part metadata of a string", part(`,"metadata":{"_a":{}}`), part(`,"metadata":{"_a":""}`), "", 0, at("/messages/1/parts/1/metadata/_a")},
		{"many faults", one(""), messages(`{"role":1,"parts":[{"type":2},3]},{"parts":4,"data":5}`), "", 0,
			at("/messages/0/parts/0/type", "/messages/0/parts/1", "/messages/0/role", "/messages/1/data", "/messages/1/parts", "/messages/1/role")},
	} {
		before := h.tables(t)
		w.run(t, 0, func(body string) answer { return h.do(t, "POST", path, body) })
		h.unchanged(t, before, w.name)
		w.run(t, 201, func(body string) answer { return h.do(t, "POST", path, body) })
	}
	// All or none: the last of many is refused by the database.
	before := h.tables(t)
	a := h.do(t, "POST", path, messages(`{"role":"user","parts":[{"type":"x"}]},{"role":"user","metadata":{"a":{}}}`))
	if p := a.problem(t); a.status != 422 || p.Code != "messages_metadata_check" {
		t.Errorf("%s", a.body)
	}
	h.unchanged(t, before, "a refused append")
}

// What the database refuses of one of many messages is pointed at in the body.
func TestX02_PointersOfRefusedMetadataAreIntoTheBody(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	h.do(t, "POST", path, `{"messages":[{"role":"user","metadata":{"_a":{}}},{"role":"user","metadata":{"a":{}}}]}`).
		refused(t, 422, "messages_metadata_check", "/messages/1/metadata")
}

func TestX02_PointersOfRefusedPartMetadataAreIntoTheBody(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	h.do(t, "POST", path, `{"messages":[{"role":"user"},{"role":"user","parts":[{"type":"x"},{"type":"x","metadata":{"a":{}}}]}]}`).
		refused(t, 422, "parts_metadata_check", "/messages/1/parts/1/metadata")
}

// The contract counts characters, the database bytes.
func TestX02_PointersOfRefusedPartTypesAreIntoTheBody(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	h.do(t, "POST", path, `{"messages":[{"role":"user","parts":[{"type":"x"},{"type":"`+strings.Repeat("é", 101)+`"}]}]}`).
		refused(t, 422, "parts_type_length_check", "/messages/0/parts/1/type")
}

// Ids follow the order of writing: over calls, within one call of many, and for the parts alike (C02).
func TestC02_MessagesAndPartsSortByID(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t) + "/messages"
	var want []string
	for call := range 20 {
		var list []string
		for m := range 1 + call*7%40 {
			var parts []string
			for p := range (call + m) % 5 {
				parts = append(parts, fmt.Sprintf(`{"type":"t","data":{"n":"%d/%d/%d"}}`, call, m, p))
				want = append(want, fmt.Sprintf("%d/%d/%d", call, m, p))
			}
			list = append(list, fmt.Sprintf(`{"role":"user","data":{"n":"%d/%d"},"parts":[%s]}`, call, m, strings.Join(parts, ",")))
		}
		h.do(t, "POST", path, `{"messages":[`+strings.Join(list, ",")+`]}`).wants(t, 201)
	}
	var got, ids []string
	var messageIDs []string
	for cursor := ""; ; {
		var body struct {
			Items      []messageBody
			NextCursor string
		}
		h.do(t, "GET", path+"?limit=17"+cursor, nil).wants(t, 200).into(t, &body)
		for _, m := range body.Items {
			messageIDs = append(messageIDs, m.ID)
			for _, p := range m.Parts {
				var data struct{ N string }
				if err := json.Unmarshal(p.Data, &data); err != nil {
					t.Fatal(err)
				}
				got, ids = append(got, data.N), append(ids, p.ID)
			}
		}
		if cursor = "&cursor=" + body.NextCursor; body.NextCursor == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("in another order: %v, want %v", got, want)
	}
	if !slices.IsSorted(ids) || !slices.IsSorted(messageIDs) || len(slices.Compact(slices.Clone(ids))) != len(want) {
		t.Error("the ids do not ascend")
	}
}
