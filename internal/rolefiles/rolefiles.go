// Package rolefiles reads the Markdown files that define agent roles, as opencode and its like keep them below .opencode/agents:
// frontmatter in YAML between two lines of ---, and behind it the prompt.
package rolefiles

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// Role is what a file defines.
type Role struct {
	Name        string // the path below agents/, without .md: folders are part of it
	Description string
	Prompt      string
	Data        json.RawMessage // an object: the frontmatter without description
}

// MaxNameLength bounds names, in bytes.
const MaxNameLength = 200

// maxNodes bounds a frontmatter, aliases counted as often as they are used.
const maxNodes = 10_000

// Parse reads one file.
func Parse(name, content string) (Role, error) {
	r := Role{Data: json.RawMessage("{}")}
	front, prompt, found, err := split(content)
	if err != nil {
		return Role{}, err
	}
	r.Prompt = strings.TrimSpace(prompt)
	if found {
		fields, err := parseFrontmatter(front)
		if err != nil {
			return Role{}, err
		}
		if description, has := fields["description"]; has {
			text, isText := description.(string)
			if !isText && description != nil {
				return Role{}, errors.New("description: must be a text")
			}
			r.Description = text
			delete(fields, "description")
		}
		if r.Data, err = json.Marshal(fields); err != nil {
			return Role{}, fmt.Errorf("the frontmatter cannot be JSON: %w", err)
		}
	}
	r.Name = name
	return r, nil
}

var agentsFolder = regexp.MustCompile(`^(?:.*/)?\.opencode/agents?/|^agents?/`)

// Name is the name of the role that the file at this path defines.
func Name(file string) (string, error) {
	file = path.Clean(strings.ReplaceAll(file, `\`, "/"))
	name, isMarkdown := strings.CutSuffix(strings.TrimPrefix(file, agentsFolder.FindString(file)), ".md")
	switch {
	case !isMarkdown:
		return "", errors.New("must end with .md")
	case name == "" || strings.HasSuffix(name, "/"):
		return "", errors.New("must have a name before .md")
	case strings.HasPrefix(name, "/"), strings.HasPrefix(name, "../"):
		return "", errors.New("must be a path within the repository")
	case len(name) > MaxNameLength:
		return "", fmt.Errorf("gives a name of more than %d bytes", MaxNameLength)
	}
	return name, nil
}

// split parts the frontmatter from the text behind it.
func split(content string) (front, text string, found bool, err error) {
	content = strings.ReplaceAll(strings.TrimPrefix(content, "\ufeff"), "\r\n", "\n")
	rest, found := strings.CutPrefix(content, "---\n")
	if !found {
		return "", content, false, nil
	}
	if text, closed := strings.CutPrefix(rest, "---\n"); closed || rest == "---" {
		return "", strings.TrimPrefix(text, "---"), true, nil
	}
	for _, end := range []string{"\n---\n", "\n...\n"} {
		if front, text, found := strings.Cut(rest, end); found {
			return front + "\n", text, true, nil
		}
	}
	if front, closed := strings.CutSuffix(rest, "\n---"); closed {
		return front + "\n", "", true, nil
	}
	return "", "", false, errors.New("the frontmatter has no end: a line of --- is missing")
}

// parseFrontmatter reads YAML. Where it is none, it is read again as its authors mostly meant it: a text behind a name may hold a
// colon, which YAML wants quoted.
func parseFrontmatter(front string) (map[string]any, error) {
	fields, err := parseYAML(front)
	if err != nil {
		if again, errAgain := parseYAML(quoteTexts(front)); errAgain == nil {
			return again, nil
		}
	}
	return fields, err
}

var plainText = regexp.MustCompile(`(?m)^([A-Za-z_][\w-]*): +([^\s"'|>{\[&*!#][^\n]*: [^\n]*|[^\s"'|>{\[&*!#][^\n]*:)$`)

func quoteTexts(front string) string {
	return plainText.ReplaceAllStringFunc(front, func(line string) string {
		name, text, _ := strings.Cut(line, ":")
		quoted, _ := json.Marshal(strings.TrimSpace(text)) // JSON's strings are YAML's
		return name + ": " + string(quoted)
	})
}

func parseYAML(text string) (map[string]any, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, fmt.Errorf("the frontmatter is no YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if doc.Kind == 0 || len(doc.Content) == 0 {
		return map[string]any{}, nil
	}
	left := maxNodes
	value, err := plain(doc.Content[0], &left)
	if err != nil {
		return nil, err
	}
	fields, isMapping := value.(map[string]any)
	if value == nil {
		return map[string]any{}, nil
	}
	if !isMapping {
		return nil, errors.New("the frontmatter must consist of names with values")
	}
	return fields, nil
}

// plain is the node as JSON has it: what JSON has no type for stays the text that it is.
func plain(n *yaml.Node, left *int) (any, error) {
	if *left--; *left < 0 {
		return nil, fmt.Errorf("the frontmatter has more than %d values", maxNodes)
	}
	switch n.Kind {
	case yaml.AliasNode:
		return plain(n.Alias, left)
	case yaml.SequenceNode:
		items := make([]any, len(n.Content))
		for i, item := range n.Content {
			var err error
			if items[i], err = plain(item, left); err != nil {
				return nil, err
			}
		}
		return items, nil
	case yaml.MappingNode:
		return plainMapping(n, left)
	default:
		return scalar(n)
	}
}

func plainMapping(n *yaml.Node, left *int) (any, error) {
	fields, merged := map[string]any{}, map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a name must be a text", key.Line)
		}
		value, err := plain(n.Content[i+1], left)
		if err != nil {
			return nil, err
		}
		if key.ShortTag() == "!!merge" {
			if base, isMapping := value.(map[string]any); isMapping {
				maps.Copy(merged, base)
				continue
			}
			return nil, fmt.Errorf("line %d: << needs names with values", key.Line)
		}
		if _, twice := fields[key.Value]; twice {
			return nil, fmt.Errorf("line %d: %s stands here twice", key.Line, key.Value)
		}
		fields[key.Value] = value
	}
	maps.Copy(merged, fields)
	return merged, nil
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9]\d{0,99})(\.\d{1,99})?$`)

func scalar(n *yaml.Node) (any, error) {
	switch tag := n.ShortTag(); {
	case tag == "!!null":
		return nil, nil
	case tag == "!!bool":
		var b bool
		err := n.Decode(&b)
		return b, err
	case (tag == "!!int" || tag == "!!float") && jsonNumber.MatchString(n.Value):
		return json.Number(n.Value), nil
	case tag == "!!int":
		for _, into := range []any{new(int64), new(uint64)} {
			if n.Decode(into) == nil {
				return into, nil
			}
		}
	case tag == "!!float" && !slices.Contains([]string{".inf", ".nan"}, strings.ToLower(strings.TrimLeft(n.Value, "+-"))):
		var f float64
		if err := n.Decode(&f); err == nil {
			return f, nil
		}
	}
	return n.Value, nil
}
