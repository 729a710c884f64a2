package api

import (
	"encoding/json"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	optional "github.com/oapi-codegen/nullable"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/internal/pgjson"
	"github.com/alkdev/hub/internal/schemas"
)

// What several domains need to go from the contract's values to the database's and back.

// storable is a JSON object as jsonb holds it (X07); an absent one is {}.
func storable(object *api.JSONObject) (pgjson.Text, error) {
	if object == nil {
		return pgjson.Text{JSON: json.RawMessage("{}")}, nil
	}
	return pgjson.Escape(*object)
}

// storablePatch is a JSON merge patch as jsonb holds it; an absent one is NULL.
func storablePatch(patch *api.JSONObject) (json.RawMessage, error) {
	if patch == nil {
		return nil, nil
	}
	text, err := pgjson.Escape(*patch)
	return text.JSON, err
}

// storables are an object's data and metadata as jsonb holds them.
func storables(data, metadata *api.JSONObject) (d, m pgjson.Text, err error) {
	if d, err = storable(data); err != nil {
		return d, m, at("/data", err)
	}
	m, err = storable(metadata)
	return d, m, at("/metadata", err)
}

// storablePatches are the merge patches of an object's data and metadata as jsonb holds them.
func storablePatches(data, metadata *api.JSONObject) (d, m json.RawMessage, err error) {
	if d, err = storablePatch(data); err != nil {
		return nil, nil, at("/data", err)
	}
	m, err = storablePatch(metadata)
	return d, m, at("/metadata", err)
}

// raw is what goes beside a jsonb column: the text itself, where jsonb would respell one of its numbers.
func raw(text pgjson.Text) string {
	if !text.Respelled {
		return ""
	}
	return string(text.JSON)
}

// nullable is NULL for "".
func nullable(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

// given is a stored JSON object as it was given.
func given(stored []byte) json.RawMessage { return pgjson.Unescape(stored) }

// stored is the text that a row holds, escaped: to the letter, where jsonb would have respelled it.
func stored(data json.RawMessage, raw *string) json.RawMessage {
	if raw != nil {
		return json.RawMessage(*raw)
	}
	return data
}

// exactly is the text that a row was given.
func exactly(data json.RawMessage, raw *string) json.RawMessage { return given(stored(data, raw)) }

// at says where in the body a JSON text stands that cannot be stored.
func at(pointer string, err error) error {
	var fault *pgjson.Error
	if errors.As(err, &fault) {
		return &pgjson.Error{Pointer: pointer + fault.Pointer, Offset: fault.Offset, Message: fault.Message}
	}
	return err
}

// schemaFaults are what is wrong with the value at a pointer; a hundred of them say enough.
func schemaFaults(pointer string, faults []schemas.Fault) []api.FieldError {
	return each(faults[:min(len(faults), 100)], func(f schemas.Fault) api.FieldError {
		return api.FieldError{Pointer: pointer + f.Pointer, Message: f.Message}
	})
}

// missing makes "no row" the noun's 404.
func missing(noun string, err error) error {
	if errors.Is(err, pgx.ErrNoRows) {
		return notFound(noun)
	}
	return err
}

// refusedBy says whether the database refused by this rule.
func refusedBy(err error, rule string) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.ConstraintName == rule
}

// valueOrNull is the value of a patch's field; nil where it is null or absent.
func valueOrNull[T any](field optional.Nullable[T]) *T {
	if value, err := field.Get(); err == nil {
		return &value
	}
	return nil
}

func notNil[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

func each[T, U any](items []T, convert func(T) U) []U {
	converted := make([]U, len(items))
	for i, item := range items {
		converted[i] = convert(item)
	}
	return converted
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

// valueOr is an optional value, or what stands for its absence.
func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// givenOrAbsent is a stored JSON value as it was given; nil for NULL.
func givenOrAbsent(stored []byte) *json.RawMessage {
	if stored == nil {
		return nil
	}
	text := given(stored)
	return &text
}

// within puts a place of the body in front of what an error points at.
func within(pointer string, err error) error {
	var known *problem
	if errors.As(err, &known) {
		for i := range known.Errors {
			known.Errors[i].Pointer = pointer + known.Errors[i].Pointer
		}
		return known
	}
	return at(pointer, err)
}
