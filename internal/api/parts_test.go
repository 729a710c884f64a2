package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	genapi "github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/client"
)

// newPart is a part of a message of its own, in a new session; its path.
func (h *hub) newPart(t testing.TB, kind, data string) string {
	t.Helper()
	session := "/v1/sessions/" + h.newSession(t)
	var list struct{ Items []messageBody }
	h.do(t, "POST", session+"/messages", `{"messages":[{"role":"assistant","parts":[{"type":"`+kind+`","data":`+data+`}]}]}`).wants(t, 201).into(t, &list)
	return session + "/parts/" + list.Items[0].Parts[0].ID
}

// partData is what a part holds now.
func (h *hub) partData(t testing.TB, path string) json.RawMessage {
	t.Helper()
	var p struct{ Data json.RawMessage }
	h.do(t, "GET", path, nil).wants(t, 200).into(t, &p)
	return p.Data
}

func delta(offset int, literal string) string {
	return fmt.Sprintf(`{"offset":%d,"text":%s}`, offset, literal)
}

// The smallest data that each type takes. A member whose name starts with ? may be left out.
var knownParts = map[string]string{
	"text":        `{"text":"","?synthetic":true,"?ignored":false,"?time":{"start":1,"?end":2},"?metadata":{}}`,
	"reasoning":   `{"text":"x","time":{"start":1,"?end":2.5},"?metadata":{"?a":1}}`,
	"file":        `{"mime":"text/plain","url":"data:,","?filename":"a","?source":{"type":"symbol","path":"a","name":"f","kind":12,"range":{"start":{"line":1,"character":2},"end":{"line":1,"character":3}},"text":{"value":"@a","start":0,"end":2}}}`,
	"tool":        `{"callID":"c","tool":"bash","state":{"status":"completed","input":{},"output":"","title":"","metadata":{},"time":{"start":1,"end":2,"?compacted":3},"?attachments":[{"mime":"image/png","url":"data:,","?filename":"a"}]},"?metadata":{}}`,
	"step-start":  `{"?snapshot":"x"}`,
	"step-finish": `{"reason":"stop","cost":0,"tokens":{"?total":1,"input":1,"output":1,"reasoning":0,"cache":{"read":0,"write":0}},"?snapshot":"x"}`,
	"snapshot":    `{"snapshot":"x"}`,
	"patch":       `{"hash":"x","files":["a"]}`,
	"agent":       `{"name":"x","?source":{"value":"@x","start":0,"end":2}}`,
	"subtask":     `{"prompt":"x","description":"x","agent":"x","?model":{"providerID":"p","modelID":"m"},"?command":"x"}`,
	"compaction":  `{"auto":true,"?overflow":false,"?tail_start_id":"msg_1"}`,
	"retry":       `{"attempt":1,"error":{"?a":1},"time":{"created":1}}`,
}

// spoil calls with, for each member at any depth of a sample, the sample without it and the sample with a wrong type in its place.
func spoil(sample any, at string, rebuild func(any) any, with func(data any, pointer string, optional bool)) {
	switch v := sample.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			plain := strings.TrimPrefix(name, "?")
			without, optional := maps.Clone(v), plain != name
			delete(without, name)
			with(rebuild(without), at+"/"+plain, optional)
			in := func(value any) any {
				changed := maps.Clone(v)
				changed[name] = value
				return rebuild(changed)
			}
			wrong := any([]any{1})
			if _, isArray := v[name].([]any); isArray {
				wrong = "x"
			}
			if plain != "a" { // a free object's
				with(in(wrong), at+"/"+plain, false)
			}
			spoil(v[name], at+"/"+plain, in, with)
		}
	case []any:
		for i := range v {
			spoil(v[i], fmt.Sprintf("%s/%d", at, i), func(value any) any {
				changed := slices.Clone(v)
				changed[i] = value
				return rebuild(changed)
			}, with)
		}
	}
}

func unmarked(sample any) string {
	text, err := json.Marshal(sample)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(text), `"?`, `"`)
}

func TestEveryPartTypeIsTyped(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := "/v1/sessions/" + h.newSession(t)
	send := func(kind, data string) answer {
		return h.do(t, "POST", path+"/messages", `{"messages":[{"role":"assistant"},{"role":"assistant","parts":[{"type":"x"},{"type":"`+kind+`","data":`+data+`}]}]}`)
	}
	var message struct{ Items []messageBody }
	send("x", `{"any":["thing"]}`).wants(t, 201).into(t, &message)
	for kind, text := range knownParts {
		var sample any
		if err := json.Unmarshal([]byte(text), &sample); err != nil {
			t.Fatal(err)
		}
		var list struct{ Items []messageBody }
		send(kind, unmarked(sample)).wants(t, 201).into(t, &list)
		wantJSON(t, kind, list.Items[1].Parts[1].Data, []byte(unmarked(sample)))
		spoilt := 0
		spoil(sample, "", func(v any) any { return v }, func(data any, pointer string, optional bool) {
			spoilt++
			if optional {
				send(kind, unmarked(data)).wants(t, 201)
				return
			}
			// A union is told by its member, so a wrong one is the union's fault.
			if strings.HasSuffix(pointer, "/status") || strings.HasSuffix(pointer, "/source/type") {
				pointer = pointer[:strings.LastIndex(pointer, "/")]
			}
			send(kind, unmarked(data)).refused(t, 400, "invalid_request", "/messages/1/parts/1/data"+pointer)
			h.do(t, "POST", path+"/parts", `{"messageId":"`+message.Items[0].ID+`","parts":[{"type":"`+kind+`","data":`+unmarked(data)+`}]}`).
				refused(t, 400, "invalid_request", "/parts/0/data"+pointer)
		})
		if spoilt == 0 {
			t.Errorf("nothing of %s was tried", kind)
		}
		// Fields that nobody knows are kept, as are types.
		more := strings.TrimSuffix(unmarked(sample), "}") + `,"more":{"deep":[1e2]}}`
		more = strings.Replace(more, "{,", "{", 1)
		send(kind, more).wants(t, 201).into(t, &list)
		wantJSON(t, kind, list.Items[1].Parts[1].Data, []byte(more))
		send(kind+"-2", `{"status":5}`).wants(t, 201)
	}
	send("tool", `{"callID":"c","tool":"t","state":{"status":"cancelled","input":{}}}`).refused(t, 400, "invalid_request", "/messages/1/parts/1/data/state")
	send("tool", `{"callID":5,"tool":"t","state":{"status":"running","input":5,"time":{"start":"x"}}}`).
		refused(t, 400, "invalid_request", "/messages/1/parts/1/data/callID", "/messages/1/parts/1/data/state/input", "/messages/1/parts/1/data/state/time/start")
}

// S07: there is one FilePartData, and both places mean it.
func TestS07_FilePartDataOnce(t *testing.T) {
	t.Parallel()
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct {
					Ref   string `json:"$ref"`
					Items struct {
						Ref string `json:"$ref"`
					}
				}
			}
		}
	}
	if err := json.Unmarshal(genapi.Contract, &doc); err != nil {
		t.Fatal(err)
	}
	const want = "#/components/schemas/FilePartData"
	if got := doc.Components.Schemas["FilePart"].Properties["data"].Ref; got != want {
		t.Error(got)
	}
	if got := doc.Components.Schemas["ToolStateCompleted"].Properties["attachments"].Items.Ref; got != want {
		t.Error(got)
	}
	var withURL []string
	for name, schema := range doc.Components.Schemas {
		if _, ok := schema.Properties["mime"]; ok {
			withURL = append(withURL, name)
		}
	}
	if len(withURL) != 1 {
		t.Errorf("files are described by %v", withURL)
	}
}

// What the real opencode has written is what the contract says of it: each part of each export can be appended, and read by its type.
func TestRealPartsAreWhatTheContractSays(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := "/v1/sessions/" + h.newSession(t)
	seen := map[string]int{}
	for name, file := range realExports(t) {
		var e struct {
			Messages []struct{ Parts []map[string]json.RawMessage }
		}
		if err := json.Unmarshal(file, &e); err != nil {
			t.Fatal(err)
		}
		var parts []map[string]any
		for _, m := range e.Messages {
			for _, p := range m.Parts {
				var kind string
				if err := json.Unmarshal(p["type"], &kind); err != nil {
					t.Fatal(err)
				}
				seen[kind]++
				for _, field := range []string{"id", "sessionID", "messageID", "type"} {
					delete(p, field)
				}
				parts = append(parts, map[string]any{"type": kind, "data": p})
			}
		}
		a := h.do(t, "POST", session+"/messages", map[string]any{"messages": []any{map[string]any{"role": "assistant", "parts": parts}}})
		if a.status != 201 {
			t.Fatalf("%s: %s", name, a.body)
		}
		var list client.MessageList
		a.into(t, &list)
		for i, part := range list.Items[0].Parts {
			known, err := part.AsKnownPart()
			if err != nil {
				t.Fatal(err)
			}
			value, err := known.ValueByDiscriminator()
			if err != nil {
				t.Fatalf("%s: part %d: %v", name, i, err)
			}
			if text, ok := value.(client.TextPart); ok && !bytes.Contains(part.Data, []byte(`"text"`)) {
				t.Errorf("%s: %+v", name, text)
			}
		}
	}
	for _, kind := range []string{"text", "reasoning", "file", "tool", "step-start", "step-finish", "snapshot", "patch", "agent", "subtask", "retry"} {
		if seen[kind] == 0 {
			t.Errorf("no export has a part of type %s", kind)
		}
	}
}

// The generated Go client makes typed parts and reads them.
func TestTheGoClientsParts(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var known client.KnownPart
	if err := known.FromTextPart(client.TextPart{Type: client.TextPartTypeText, Data: client.TextPartData{Text: "hello"}}); err != nil {
		t.Fatal(err)
	}
	var create client.PartCreate
	if err := create.FromKnownPart(known); err != nil {
		t.Fatal(err)
	}
	other, raw := "mystery", client.JSONObject(`{"a":1}`)
	body := client.MessageAppend{Messages: []client.MessageCreate{{Role: client.MessageRoleUser, Parts: []client.PartCreate{create, {Type: &other, Data: &raw}}}}}
	var list client.MessageList
	h.do(t, "POST", "/v1/sessions/"+h.newSession(t)+"/messages", body).wants(t, 201).into(t, &list)
	read, err := list.Items[0].Parts[0].AsKnownPart()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := read.AsTextPart(); err != nil || text.Data.Text != "hello" {
		t.Errorf("%+v %v", text, err)
	}
	unknown, err := list.Items[0].Parts[1].AsKnownPart()
	if err != nil {
		t.Fatal(err)
	}
	if value, err := unknown.ValueByDiscriminator(); err == nil {
		t.Errorf("%v", value)
	}
	wantJSON(t, "the other part", list.Items[0].Parts[1].Data, raw)
}

// What an import brought and the typed contract refuses is read and exported as it came.
func TestX07_ImportedPartsNeedNotBeTyped(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	file := export{id: "ses_untyped", messages: []exportMessage{{id: "m1", role: "assistant", parts: []exportPart{
		{id: "p1", more: `,"text":5`},
		{id: "p2", kind: "reasoning"},
		{id: "p3", kind: "tool", more: `,"callID":null,"state":{"status":"cancelled","output":1e2}`},
		{id: "p4", kind: "tool", more: `,"state":"\ud83d"`},
		{id: "p5", kind: "tool", more: `,"callID":"c","tool":"t","state":{"status":"running","input":{},"time":{"start":1}}`},
		{id: "p6", kind: "file", more: `,"source":{"type":"cloud"}`},
		{id: "p7", kind: "hologram", more: `,"mime":1.50`},
	}}}}
	id := h.imports(t, h.newProject(t, "untyped"), file, "created").ID
	var list client.MessagePage
	h.do(t, "GET", "/v1/sessions/"+id+"/messages", nil).wants(t, 200).into(t, &list)
	if n := len(list.Items[0].Parts); n != 7 {
		t.Fatalf("%d parts", n)
	}
	h.do(t, "GET", "/v1/sessions/"+id+"/parts?content=summary", nil).wants(t, 200)
	h.wantExport(t, id, []byte(file.String()))

	// They can be changed to what is right, and in what is opaque; not to what is wrong.
	part := func(n int) string { return "/v1/sessions/" + id + "/parts/" + list.Items[0].Parts[n].Id.String() }
	h.do(t, "PATCH", part(0), `{"metadata":{"_x":{"a":1}}}`).wants(t, 200)
	h.do(t, "PATCH", part(0), `{"data":{"synthetic":true}}`).refused(t, 422, "part_data_invalid", "/data/text")
	h.do(t, "PATCH", part(0), `{"data":{"text":"five"}}`).wants(t, 200)
	h.do(t, "PATCH", part(6), `{"data":{"mime":null}}`).wants(t, 200)
	// A later export finds its tool in whatever state it will.
	file.messages[0].parts[4].more = `,"callID":"c","tool":"t","state":{"status":"pending","input":{},"raw":""}`
	file.times = `{"created":1000,"updated":3000}`
	h.imports(t, h.projectOf(t, id), file, "updated")
	h.wantExport(t, id, []byte(file.String()))
}

func (h *hub) projectOf(t testing.TB, session string) string {
	t.Helper()
	return h.do(t, "GET", "/v1/sessions/"+session, nil).session(t).ProjectID
}

func TestToolStates(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	states := map[string]string{
		"pending":   `{"status":"pending","input":{},"raw":""}`,
		"running":   `{"status":"running","input":{},"time":{"start":1}}`,
		"completed": `{"status":"completed","input":{},"output":"","title":"","metadata":{},"time":{"start":1,"end":2}}`,
		"error":     `{"status":"error","input":{},"error":"x","time":{"start":1,"end":2}}`,
	}
	legal := map[string]bool{"pending running": true, "pending error": true, "running completed": true, "running error": true}
	for from, before := range states {
		for to, after := range states {
			path := h.newPart(t, "tool", `{"callID":"c","tool":"t","state":`+before+`}`)
			a := h.do(t, "PATCH", path, `{"data":{"state":`+after+`}}`)
			if from == to || legal[from+" "+to] {
				a.wants(t, 200)
				h.do(t, "PATCH", path, `{"data":{"state":`+after+`}}`).wants(t, 200) // a retry
			} else {
				a.refused(t, 409, "parts_tool_state_transition", "/data/state/status")
				wantJSON(t, "refused", h.partData(t, path), []byte(`{"callID":"c","tool":"t","state":`+before+`}`))
			}
		}
	}
	path := h.newPart(t, "tool", `{"callID":"c","tool":"t","state":`+states["pending"]+`}`)
	h.do(t, "PATCH", path, `{"data":{"state":{"status":"cancelled"}}}`).refused(t, 422, "part_data_invalid", "/data/state")
	h.do(t, "PATCH", path, `{"data":{"state":{"status":"running"}}}`).refused(t, 422, "part_data_invalid", "/data/state/time")
	h.do(t, "PATCH", path, `{"data":{"state":null}}`).refused(t, 422, "part_data_invalid", "/data/state")
}

func TestPartsAreAppendedListedAndChanged(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	f := h.newFamily(t, h.admin)
	path := "/v1/sessions/" + f.session + "/parts"
	var added struct {
		Items []struct{ ID, MessageID, Type string }
	}
	h.do(t, "POST", path, `{"messageId":"`+f.message+`","parts":[{"type":"x","data":{"a":1.50e1,"b":"\u0000"},"metadata":{"_m":{}}},{"type":"text","data":{"text":"b"}},{"type":"x"}]}`).wants(t, 201).into(t, &added)
	ids := []string{f.part}
	for _, p := range added.Items {
		if p.ID <= ids[len(ids)-1] || p.MessageID != f.message {
			t.Errorf("%+v", p)
		}
		ids = append(ids, p.ID)
	}
	if got := h.page(t, h.admin, path, "id").values; !slices.Equal(got, ids) {
		t.Errorf("listed %v, want %v", got, ids)
	}
	first := h.page(t, h.admin, path+"?limit=3", "id")
	if second := h.page(t, h.admin, path+"?limit=3&cursor="+first.cursor, "id"); !slices.Equal(slices.Concat(first.values, second.values), ids) || second.cursor != "" {
		t.Errorf("pages %v %v", first, second)
	}
	if got := h.page(t, h.admin, path+"?type=x", "id").values; !slices.Equal(got, []string{ids[1], ids[3]}) {
		t.Errorf("of type x: %v", got)
	}
	h.do(t, "GET", path+"?limit=3&type=x&cursor="+first.cursor, nil).refused(t, 400, "invalid_cursor", "query:cursor")
	if got := h.page(t, h.admin, path+"?type=none", "id").values; len(got) != 0 {
		t.Errorf("of no type: %v", got)
	}
	h.do(t, "GET", "/v1/sessions/"+uuid.NewString()+"/parts", nil).refused(t, 404, "session_not_found")

	h.do(t, "POST", path, `{"messageId":"`+uuid.NewString()+`","parts":[{"type":"x"}]}`).refused(t, 422, "parts_message_id_fkey", "/messageId")
	h.do(t, "POST", "/v1/sessions/"+h.newSession(t)+"/parts", `{"messageId":"`+f.message+`","parts":[{"type":"x"}]}`).refused(t, 422, "parts_message_id_fkey", "/messageId")
	h.do(t, "POST", path, `{"messageId":"`+f.message+`","parts":[{"type":"x"},{"type":"x","metadata":{"a":{}}}]}`).refused(t, 422, "parts_metadata_check", "/parts/1/metadata")
	h.do(t, "POST", path, `{"messageId":"`+f.message+`","parts":[]}`).refused(t, 400, "invalid_request", "/parts")

	// A patch merges on the text: what it does not name keeps its spelling.
	a := h.do(t, "PATCH", path+"/"+ids[1], `{"data":{"c":-0.0},"metadata":{"_n":{"x":1}}}`, "If-Match", `"1"`).wants(t, 200)
	var p struct {
		Data, Metadata json.RawMessage
		Revision       int
	}
	a.into(t, &p)
	wantJSON(t, "data", p.Data, []byte(`{"a":1.50e1,"b":"\u0000","c":-0.0}`))
	wantJSON(t, "metadata", p.Metadata, []byte(`{"_m":{},"_n":{"x":1}}`))
	if p.Revision != 2 || a.header.Get("ETag") != `"2"` {
		t.Errorf("revision %d, ETag %s", p.Revision, a.header.Get("ETag"))
	}
	h.do(t, "PATCH", path+"/"+ids[1], `{"data":{"d":1}}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "PATCH", path+"/"+ids[1], `{"metadata":{"_n":null}}`, "If-Match", `"1"`).refused(t, 412, "precondition_failed")
	h.do(t, "PATCH", path+"/"+uuid.NewString(), `{"data":{}}`).refused(t, 404, "part_not_found")
	h.do(t, "PATCH", path+"/"+uuid.NewString(), `{"metadata":{}}`).refused(t, 404, "part_not_found")
	h.do(t, "PATCH", path+"/"+ids[2], `{"data":{"text":null}}`).refused(t, 422, "part_data_invalid", "/data/text")
	h.do(t, "PATCH", path+"/"+ids[2], `{"metadata":{"bare":{}}}`).refused(t, 422, "parts_metadata_check", "/metadata")
	h.do(t, "GET", path+"/"+uuid.NewString(), nil).refused(t, 404, "part_not_found")
}

// X08: deltas are the text, at whatever moment it is read, and whatever is in them.
func TestX08_DeltasAreTheText(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := h.newPart(t, "text", `{"text":"a\ud83d\ude00","n":1e2}`)
	offset := 3
	grow := func(literal string, units int) {
		t.Helper()
		var r struct{ Offset int }
		h.do(t, "POST", path+"/deltas", delta(offset, literal)).wants(t, 200).into(t, &r)
		if offset += units; r.Offset != offset {
			t.Fatalf("behind %s: %d, want %d", literal, r.Offset, offset)
		}
	}
	grow(`"\u0000ä"`, 2)
	grow(`"\ud83d"`, 1) // half of a pair, and then the other half
	grow(`"\ude00"`, 1)
	grow(`"\u0010\u00100\ud83d!<\""`, 7)
	grow(`"😀"`, 2)
	want := `{"text":"a\ud83d\ude00\u0000ä\ud83d\ude00\u0010\u00100\ud83d!<\"😀","n":1e2}`
	wantJSON(t, "the part", h.partData(t, path), []byte(want))
	session := path[:strings.Index(path, "/parts/")]
	var list struct{ Items []messageBody }
	h.do(t, "GET", session+"/messages", nil).wants(t, 200).into(t, &list)
	wantJSON(t, "in a list", list.Items[0].Parts[0].Data, []byte(want))
	if !bytes.Contains(h.do(t, "GET", session+"/export", nil).wants(t, 200).body, []byte("😀")) {
		t.Error("the export lacks what has streamed in")
	}

	// A retry changes nothing, wherever it begins; a gap, an overlap and another text are refused with what is expected.
	expects := func(body string) {
		t.Helper()
		a := h.do(t, "POST", path+"/deltas", body).refused(t, 409, "part_deltas_contiguous", "/offset")
		if m := a.problem(t).Errors[0].Message; m != fmt.Sprintf("must be %d", offset) {
			t.Errorf("%s: %s", body, m)
		}
	}
	retry := func() {
		t.Helper()
		for _, again := range []struct {
			offset, end int
			literal     string
		}{{14, 16, `"😀"`}, {3, 5, `"\u0000ä"`}, {5, 6, `"\ud83d"`}, {6, 7, `"\ude00"`}, {5, 7, `"😀"`}, {7, 14, `"\u0010\u00100\ud83d!<\""`}, {0, 5, `"a😀\u0000ä"`}} {
			var r struct{ Offset int }
			h.do(t, "POST", path+"/deltas", delta(again.offset, again.literal)).wants(t, 200).into(t, &r)
			if r.Offset != again.end {
				t.Errorf("%+v: %d", again, r.Offset)
			}
		}
		expects(delta(offset+1, `"x"`))
		expects(delta(offset-1, `"x"`))
		expects(delta(offset-2, `"😀x"`))
		expects(delta(0, `"b"`))
		expects(delta(1<<40, `"b"`))
		wantJSON(t, "after retries", h.partData(t, path), []byte(want))
	}
	retry()

	// The end of the stream writes all of it.
	deltas := func() int { return h.count(t, "SELECT count(*) FROM part_deltas") }
	if deltas() == 0 {
		t.Error("no deltas")
	}
	h.do(t, "PATCH", path, `{"metadata":{"_x":{}}}`).wants(t, 200)
	if deltas() == 0 {
		t.Error("the part's metadata took its text along")
	}
	h.do(t, "PATCH", path, `{"data":{"time":{"start":1,"end":2}}}`).wants(t, 200)
	want = strings.Replace(want, `"n":1e2`, `"n":1e2,"time":{"start":1,"end":2}`, 1)
	wantJSON(t, "after the end", h.partData(t, path), []byte(want))
	if n := deltas(); n != 0 {
		t.Errorf("%d deltas are left", n)
	}
	retry()
	grow(`"more"`, 4)

	// So does the sweeper, to the letter, but not while text comes in.
	sweep := func() int { return h.count(t, "SELECT fold_part_deltas(10)") }
	if n := sweep(); n != 0 {
		t.Errorf("%d parts folded", n)
	}
	h.exec(t, "ALTER TABLE part_deltas DISABLE TRIGGER part_deltas_append_only")
	h.exec(t, "UPDATE part_deltas SET created_at = created_at - interval '1 hour'")
	if n := sweep(); n != 1 || deltas() != 0 {
		t.Errorf("%d parts folded, %d deltas left", n, deltas())
	}
	wantJSON(t, "after the sweeper", h.partData(t, path), []byte(strings.Replace(want, `😀"`, `😀more"`, 1)))

	for _, w := range []struct{ body, pointer string }{
		{`{"text":"x"}`, "/offset"}, {`{"offset":-1,"text":"x"}`, "/offset"}, {`{"offset":1.5,"text":"x"}`, "/offset"}, {`{"offset":1.0,"text":"x"}`, "/offset"}, {`{"offset":1e400,"text":"x"}`, ""},
		{`{"offset":0,"text":""}`, "/text"}, {`{"offset":0,"text":5}`, "/text"}, {`{"offset":0}`, "/text"}, {`{"offset":0,"text":"x","more":1}`, "/more"},
		{`{"offset":0,"text":"` + strings.Repeat("x", 1<<20+1) + `"}`, "/text"},
	} {
		if a := h.do(t, "POST", path+"/deltas", w.body); a.status != 400 || w.pointer != "" && a.problem(t).Errors[0].Pointer != w.pointer {
			t.Errorf("%.60s: %d %s", w.body, a.status, a.body)
		}
	}
	h.do(t, "POST", session+"/parts/"+uuid.NewString()+"/deltas", delta(0, `"x"`)).refused(t, 404, "part_not_found")
	h.do(t, "POST", "/v1/sessions/"+h.newSession(t)+path[strings.Index(path, "/parts/"):]+"/deltas", delta(0, `"x"`)).refused(t, 404, "part_not_found")
}

// A tool's raw input grows while it is pending, its output while it runs, and nothing once it is done.
func TestX08_ToolsStreamToo(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := h.newPart(t, "tool", `{"callID":"c","tool":"t","state":{"status":"pending","input":{},"raw":"{\"a"}}`)
	h.do(t, "POST", path+"/deltas", delta(3, `"\":1}"`)).wants(t, 200)
	wantJSON(t, "pending", h.partData(t, path), []byte(`{"callID":"c","tool":"t","state":{"status":"pending","input":{},"raw":"{\"a\":1}"}}`))
	h.do(t, "PATCH", path, `{"data":{"state":{"status":"running","input":{"a":1},"raw":null,"time":{"start":1}}}}`).wants(t, 200)
	h.do(t, "POST", path+"/deltas", delta(0, `"out"`)).wants(t, 200)
	h.do(t, "POST", path+"/deltas", delta(3, `"put"`)).wants(t, 200)
	h.do(t, "PATCH", path, `{"data":{"state":{"status":"completed","title":"","metadata":{},"time":{"end":2}}}}`).wants(t, 200)
	wantJSON(t, "completed", h.partData(t, path), []byte(`{"callID":"c","tool":"t","state":{"status":"completed","input":{"a":1},"output":"output","title":"","metadata":{},"time":{"start":1,"end":2}}}`))
	h.do(t, "POST", path+"/deltas", delta(6, `"x"`)).refused(t, 409, "part_takes_no_deltas")
	h.do(t, "POST", h.newPart(t, "step-start", `{}`)+"/deltas", delta(0, `"x"`)).refused(t, 409, "part_takes_no_deltas")
}

// Writers that send the same stream at once, out of step and with retries, make one text.
func TestX08_ConcurrentWritersOfOneText(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	path := h.newPart(t, "text", `{"text":""}`)
	const pieces, size = 60, 5
	text := ""
	for i := range pieces {
		text += fmt.Sprintf("%04d ", i)
	}
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 1))
			for done := 0; done < pieces; {
				piece := max(0, done-r.IntN(3))
				a := h.do(t, "POST", path+"/deltas", delta(piece*size, `"`+text[piece*size:piece*size+size]+`"`))
				switch {
				case a.status == http.StatusOK:
					done = max(done, piece+1)
				case a.status != http.StatusConflict:
					t.Errorf("%d %s", a.status, a.body)
					return
				}
			}
		})
	}
	group.Wait()
	wantJSON(t, "the text", h.partData(t, path), []byte(`{"text":"`+text+`"}`))
}

// A list that asks for summaries gets short ones of long parts, each still of its type; what is short comes as it is.
func TestSummaries(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	session := "/v1/sessions/" + h.newSession(t)
	long := strings.Repeat("0123456789", 1<<20) // 10 MB
	lines := `["` + strings.Repeat(`line","`, 5000) + `"]`
	body := `{"messages":[{"role":"assistant","parts":[{"type":"text","data":{"text":"short","n":1e2}},{"type":"text","data":{"text":"` + long + `"}},` +
		`{"type":"tool","data":{"callID":"c","tool":"bash","state":{"status":"completed","input":{"command":"ls","lines":` + lines + `},"output":"` + long[:5000] + `","title":"List","metadata":{"deep":{"deeper":{"deepest":{}}}},"time":{"start":1,"end":2}}}}]}]}`
	var list struct{ Items []messageBody }
	h.do(t, "POST", session+"/messages", body).wants(t, 201).into(t, &list)
	id := list.Items[0].ID
	for path, read := range map[string]func(answer) []json.RawMessage{
		"/messages": func(a answer) (parts []json.RawMessage) {
			var list struct {
				Items []struct{ Parts []json.RawMessage }
			}
			a.into(t, &list)
			return list.Items[0].Parts
		},
		"/messages/" + id: func(a answer) []json.RawMessage {
			var m struct{ Parts []json.RawMessage }
			a.into(t, &m)
			return m.Parts
		},
		"/parts": func(a answer) []json.RawMessage {
			var list struct{ Items []json.RawMessage }
			a.into(t, &list)
			return list.Items
		},
	} {
		a := h.do(t, "GET", session+path+"?content=summary", nil).wants(t, 200)
		if len(a.body) > 20_000 {
			t.Errorf("%s: a summary of %d bytes", path, len(a.body))
		}
		for i, text := range read(a) {
			var p struct {
				Truncated *bool
				Data      json.RawMessage
			}
			if err := json.Unmarshal(text, &p); err != nil {
				t.Fatal(err)
			}
			if (p.Truncated != nil && *p.Truncated) != (i > 0) {
				t.Errorf("%s: part %d: truncated %v", path, i, p.Truncated)
			}
			var known client.Part
			if err := json.Unmarshal(text, &known); err != nil {
				t.Fatal(err)
			}
			part, err := known.AsKnownPart()
			if err != nil {
				t.Fatal(err)
			}
			switch value, err := part.ValueByDiscriminator(); v := value.(type) {
			case client.TextPart:
				if i == 0 && v.Data.Text != "short" || i == 1 && v.Data.Text != long[:200] {
					t.Errorf("%s: part %d: %q", path, i, v.Data.Text)
				}
			case client.ToolPart:
				if state, err := v.Data.State.AsToolStateCompleted(); err != nil || v.Data.Tool != "bash" || state.Title != "List" || state.Input["command"] != "ls" || state.Output != long[:200] {
					t.Errorf("%s: %s", path, p.Data)
				}
			default:
				t.Errorf("%s: %T %v", path, value, err)
			}
		}
		full := read(h.do(t, "GET", session+path, nil).wants(t, 200))
		if len(full[1]) < len(long) || bytes.Contains(full[1], []byte("truncated")) {
			t.Errorf("%s: a full part of %d bytes", path, len(full[1]))
		}
	}
	h.do(t, "GET", session+"/parts?content=some", nil).refused(t, 400, "invalid_request", "query:content")
	// The stated limit.
	h.do(t, "POST", session+"/messages", `{"messages":[{"role":"user","parts":[{"type":"text","data":{"text":"`+long+long+`"}}]}]}`).refused(t, 413, "body_too_large", "")
}
