// Package taskfiles reads and writes task files in the format of taskgraph: Markdown behind a YAML frontmatter.
//
// A file is its head (everything up to and including the line that closes the frontmatter, to the letter) and its body. Writing a
// task back changes only those lines of the head whose values differ, so that a file comes back byte for byte where nothing changed.
package taskfiles

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// ErrNoTask is a file without frontmatter: Markdown, but no task.
var ErrNoTask = errors.New("no frontmatter: not a task")

// MaxHead is the length of a head, in bytes, that the hub takes.
const MaxHead = 65536

// Statuses and the categories have these values, in ascending order.
var (
	Statuses   = []string{"pending", "in-progress", "completed", "failed", "blocked"}
	Categories = map[string][]string{
		"scope":    {"single", "narrow", "moderate", "broad", "system"},
		"risk":     {"trivial", "low", "medium", "high", "critical"},
		"impact":   {"isolated", "component", "phase", "project"},
		"level":    {"planning", "decomposition", "implementation", "review", "research"},
		"priority": {"low", "medium", "high", "critical"},
	}
)

// Task is what a file says. An empty category, assignee or due is one that the file does not state.
type Task struct {
	Head, Body         string
	Slug, Name, Status string
	Scope, Risk        string
	Impact, Level      string
	Priority           string
	Tags, DependsOn    []string
	Assignee, Due      string
	Created, Modified  *time.Time
	Warnings           []Fault
	DependsOnLine      int // where the dependencies stand, for messages; the id's line where there are none
}

// Fault is something wrong at a line of the file.
type Fault struct {
	Line    int
	Message string
}

// Faults are why a file is not a valid task.
type Faults []Fault

func (f Faults) Error() string {
	texts := make([]string, len(f))
	for i, fault := range f {
		texts[i] = fmt.Sprintf("line %d: %s", fault.Line, fault.Message)
	}
	return strings.Join(texts, "; ")
}

// Split cuts a file behind the line that closes its frontmatter.
func Split(text string) (head, body string, err error) {
	first, rest, more := strings.Cut(strings.TrimPrefix(text, "\ufeff"), "\n")
	if strings.TrimRight(first, " \t\r") != "---" || !more {
		return "", "", ErrNoTask
	}
	for at := len(text) - len(rest); at < len(text); {
		end := strings.IndexByte(text[at:], '\n')
		if end < 0 {
			end = len(text) - at - 1
		}
		if strings.TrimRight(text[at:at+end+1], " \t\r\n") == "---" {
			return text[:at+end+1], text[at+end+1:], nil
		}
		at += end + 1
	}
	return "", "", Faults{{1, "the frontmatter is not closed by a line of ---"}}
}

// inner is the YAML of a head, and the number of lines before it.
func inner(head string) string {
	_, rest, _ := strings.Cut(head, "\n")
	rest = strings.TrimRight(rest, "\r\n")
	if at := strings.LastIndexByte(rest, '\n'); at >= 0 {
		return rest[:at+1]
	}
	return ""
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// Parse reads a file. The error is ErrNoTask or Faults.
func Parse(text string) (Task, error) {
	if !utf8.ValidString(text) {
		return Task{}, Faults{{1 + strings.Count(text[:invalidAt(text)], "\n"), "is not UTF-8"}}
	}
	if at := strings.IndexByte(text, 0); at >= 0 {
		return Task{}, Faults{{1 + strings.Count(text[:at], "\n"), "holds a NUL character"}}
	}
	head, body, err := Split(text)
	if err != nil {
		return Task{}, err
	}
	task := Task{Head: head, Body: body, Status: "pending", Tags: []string{}, DependsOn: []string{}}
	if len(head) > MaxHead {
		return task, Faults{{1, fmt.Sprintf("the frontmatter has more than %d bytes", MaxHead)}}
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(inner(head)), &document); err != nil {
		line, message := 1, strings.TrimPrefix(err.Error(), "yaml: ")
		if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
			message = err.Error()[len(m[0]):]
		}
		return task, Faults{{line + 1, "the frontmatter is not YAML: " + message}}
	}
	if len(document.Content) == 0 || document.Content[0].Kind != yaml.MappingNode {
		return task, Faults{{2, "the frontmatter is not a list of keys and values"}}
	}
	r := reader{task: &task, seen: map[string]int{}}
	pairs := document.Content[0].Content
	for i := 0; i+1 < len(pairs); i += 2 {
		r.read(pairs[i], pairs[i+1])
	}
	if task.DependsOnLine == 0 {
		task.DependsOnLine = r.seen["id"]
	}
	for _, key := range []string{"id", "name"} {
		if _, ok := r.seen[key]; !ok {
			r.faults = append(r.faults, Fault{1, key + " is missing"})
		}
	}
	if r.faults != nil {
		slices.SortStableFunc(r.faults, func(a, b Fault) int { return a.Line - b.Line })
		return task, r.faults
	}
	return task, nil
}

func invalidAt(text string) int {
	for i, r := range text {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(text[i:]); size == 1 {
				return i
			}
		}
	}
	return 0
}

type reader struct {
	task   *Task
	seen   map[string]int
	faults Faults
}

func (r *reader) fault(at *yaml.Node, format string, args ...any) {
	r.faults = append(r.faults, Fault{at.Line + 1, fmt.Sprintf(format, args...)})
}

func (r *reader) read(key, value *yaml.Node) {
	if line, ok := r.seen[key.Value]; ok {
		r.fault(key, "%s stands in line %d already", key.Value, line)
		return
	}
	r.seen[key.Value] = key.Line + 1
	t := r.task
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	switch key.Value {
	case "id":
		t.Slug = r.text(key, value, true)
	case "name":
		t.Name = r.text(key, value, true)
	case "status":
		if text := r.text(key, value, false); text != "" && !slices.Contains(Statuses, text) {
			r.fault(value, "status %q is none of %s", text, strings.Join(Statuses, ", "))
		} else if text != "" {
			t.Status = text
		}
	case "scope":
		t.Scope = r.category(key, value)
	case "risk":
		t.Risk = r.category(key, value)
	case "impact":
		t.Impact = r.category(key, value)
	case "level":
		t.Level = r.category(key, value)
	case "priority": // free text in the format
		text := r.text(key, value, false)
		if text != "" && !slices.Contains(Categories["priority"], text) {
			t.Warnings = append(t.Warnings, Fault{value.Line + 1, fmt.Sprintf("priority %q is none of %s: it stays in the file, and counts as not assessed", text, strings.Join(Categories["priority"], ", "))})
			text = ""
		}
		t.Priority = text
	case "tags":
		t.Tags = r.list(key, value)
	case "depends_on", "dependsOn":
		t.DependsOnLine = key.Line + 1
		for _, slug := range r.list(key, value) {
			if !slices.Contains(t.DependsOn, slug) {
				t.DependsOn = append(t.DependsOn, slug)
			}
		}
	case "assignee":
		t.Assignee = r.text(key, value, false)
	case "due":
		t.Due = r.text(key, value, false)
	case "created":
		t.Created = r.time(key, value)
	case "modified":
		t.Modified = r.time(key, value)
	}
}

func (r *reader) text(key, value *yaml.Node, required bool) string {
	if value.Kind != yaml.ScalarNode {
		r.fault(value, "%s must be a text", key.Value)
		return ""
	}
	if value.Tag == "!!null" {
		if required {
			r.fault(key, "%s is empty", key.Value)
		}
		return ""
	}
	text := strings.TrimSpace(value.Value)
	if required && text == "" {
		r.fault(key, "%s is empty", key.Value)
	}
	return text
}

func (r *reader) category(key, value *yaml.Node) string {
	text := r.text(key, value, false)
	if text != "" && !slices.Contains(Categories[key.Value], text) {
		r.fault(value, "%s %q is none of %s", key.Value, text, strings.Join(Categories[key.Value], ", "))
	}
	return text
}

func (r *reader) list(key, value *yaml.Node) []string {
	all := []string{}
	if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
		return all
	}
	if value.Kind != yaml.SequenceNode {
		r.fault(value, "%s must be a list", key.Value)
		return all
	}
	for _, item := range value.Content {
		if text := r.text(key, item, true); text != "" {
			all = append(all, text)
		}
	}
	return all
}

var layouts = []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999", time.DateOnly}

func (r *reader) time(key, value *yaml.Node) *time.Time {
	text := r.text(key, value, false)
	if text == "" {
		return nil
	}
	for _, layout := range layouts {
		if at, err := time.Parse(layout, text); err == nil {
			at = at.UTC().Truncate(time.Microsecond) // what the database keeps
			return &at
		}
	}
	r.fault(value, "%s %q is no time such as 2026-01-31T12:00:00Z", key.Value, text)
	return nil
}

// Fields are the authored fields in a form that is compared: two tasks that say the same have the same. path is the file's.
func (t Task) Fields(path string) map[string]string {
	depends, hash := slices.Sorted(slices.Values(t.DependsOn)), sha256.Sum256([]byte(t.Body))
	return map[string]string{
		"name": t.Name, "path": path, "scope": t.Scope, "risk": t.Risk, "impact": t.Impact, "level": t.Level, "priority": t.Priority, "tags": List(t.Tags), "dependsOn": List(depends),
		"assignee": t.Assignee, "due": t.Due, "created": Time(t.Created), "modified": Time(t.Modified), "body": hex.EncodeToString(hash[:]),
	}
}

// List spells a list for Fields.
func List(items []string) string {
	if len(items) == 0 {
		return ""
	}
	text, err := json.Marshal(items)
	if err != nil {
		panic(err) // strings
	}
	return string(text)
}

// Time spells a time for Fields.
func Time(at *time.Time) string {
	if at == nil {
		return ""
	}
	return at.UTC().Format(time.RFC3339Nano)
}

// Write is the file of a task: t's head with the values of t, and its body. Lines whose values are right stay as they are; a task
// without a head gets one.
func (t Task) Write() string {
	if t.Head == "" {
		return t.fresh() + t.Body
	}
	now, err := Parse(t.Head)
	if err != nil {
		return t.fresh() + t.Body
	}
	head := t.Head
	is, was := t.Fields(""), now.Fields("")
	if t.Slug != now.Slug {
		head = replace(head, []string{"id"}, line("id", t.Slug))
	}
	if t.Status != "" && t.Status != now.Status {
		head = replace(head, []string{"status"}, line("status", t.Status))
	}
	for _, key := range order {
		switch {
		case is[key] == was[key]:
		case key == "dependsOn":
			head = replace(head, []string{"depends_on", "dependsOn"}, t.line(key))
		default:
			head = replace(head, []string{key}, t.line(key))
		}
	}
	if t.Body != "" && !strings.HasSuffix(head, "\n") {
		head += "\n"
	}
	return head + t.Body
}

var order = []string{"name", "dependsOn", "scope", "risk", "impact", "level", "priority", "tags", "assignee", "due", "created", "modified"}

func (t Task) fresh() string {
	head := "---\n" + line("id", t.Slug) + line("name", t.Name)
	if t.Status != "" {
		head += line("status", t.Status)
	}
	for _, key := range order[1:] {
		head += t.line(key)
	}
	return head + "---\n"
}

// line is the lines of a key, or nothing for a value that is not stated.
func (t Task) line(key string) string {
	switch key {
	case "tags":
		return list("tags", t.Tags)
	case "dependsOn":
		return list("depends_on", t.DependsOn)
	}
	value := t.Fields("")[key]
	if value == "" {
		return ""
	}
	return line(key, value)
}

func line(key, value string) string { return encode(map[string]string{key: value}) }

func list(key string, items []string) string {
	if len(items) == 0 {
		return ""
	}
	return encode(map[string][]string{key: items})
}

func encode(value any) string {
	var text bytes.Buffer
	encoder := yaml.NewEncoder(&text)
	encoder.SetIndent(2)
	if err := encoder.Encode(value); err != nil {
		panic(err) // strings
	}
	return text.String()
}

// replace puts other lines where a key's are, in the first place where one of its names stands, else at the end.
func replace(head string, keys []string, with string) string {
	lines := strings.SplitAfter(strings.TrimSuffix(head, "\n"), "\n")
	if strings.HasSuffix(lines[0], "\r\n") {
		with = strings.ReplaceAll(with, "\n", "\r\n")
	}
	tail := ""
	if strings.HasSuffix(head, "\n") {
		tail = "\n"
	}
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(inner(head)), &document); err != nil || len(document.Content) == 0 {
		return head
	}
	root := document.Content[0]
	if root.Style&yaml.FlowStyle != 0 { // {id: a, name: b}: has no lines of its own
		return head
	}
	var out strings.Builder
	placed := false
	next := 1 // the first line that was not written
	out.WriteString(lines[0])
	for i := 0; i+1 < len(root.Content); i += 2 {
		if !slices.Contains(keys, root.Content[i].Value) {
			continue
		}
		from, to := root.Content[i].Line, len(lines)-1
		if i+2 < len(root.Content) {
			to = root.Content[i+2].Line
		}
		for to > from+1 && isComment(lines[to-1]) { // what is said before the next key
			to--
		}
		out.WriteString(strings.Join(lines[next:from], ""))
		if !placed {
			out.WriteString(with)
			placed = true
		}
		next = to
	}
	out.WriteString(strings.Join(lines[next:len(lines)-1], ""))
	if !placed {
		out.WriteString(with)
	}
	return out.String() + lines[len(lines)-1] + tail
}

func isComment(text string) bool {
	text = strings.TrimSpace(text)
	return text == "" || strings.HasPrefix(text, "#")
}
