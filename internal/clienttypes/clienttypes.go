// Package clienttypes knows the kinds of clients and judges their configurations by JSON Schemas (2020-12).
//
// schemas/<type>/<version>.json: the newest version is in force, and the ones before it are frozen. A new version accepts all that
// its predecessor accepted, so new fields are optional; a breaking change is a new type, such as llm-provider-v2. The tests hold
// every version against its predecessor, and each file against schemas/frozen.sum.
package clienttypes

import (
	"cmp"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/alkdev/hub/internal/schemas"
)

//go:embed schemas
var files embed.FS

// Schema is one version of a type's schema.
type Schema struct {
	Type    string
	Version int32
	JSON    json.RawMessage

	*schemas.Schema // judges configurations
}

// Schemas are all versions of all types, sorted by both.
var Schemas = sync.OnceValue(func() []Schema {
	found, err := load(files)
	if err != nil {
		panic(err) // a broken build: the tests load them too
	}
	return found
})

// Current is the schema in force for each type.
var Current = sync.OnceValue(func() map[string]Schema {
	current := map[string]Schema{}
	for _, s := range Schemas() {
		current[s.Type] = s
	}
	return current
})

func load(files fs.FS) ([]Schema, error) {
	names, err := fs.Glob(files, "schemas/*/*.json")
	if err != nil {
		return nil, err
	}
	found := make([]Schema, 0, len(names))
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		version, err := strconv.ParseInt(strings.TrimSuffix(path.Base(name), ".json"), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%s: a schema's file is named after its version", name)
		}
		s := Schema{Type: path.Base(path.Dir(name)), Version: int32(version), JSON: text}
		if s.Schema, err = schemas.Compile(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b Schema) int { return cmp.Or(strings.Compare(a.Type, b.Type), int(a.Version-b.Version)) })
	return found, nil
}
