package keyring

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var (
	one = "v1:" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))
	two = "v2:" + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{2}, 32))
)

func parse(t testing.TB, text string) *Ring {
	t.Helper()
	r, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestC11_ParseReadsRings(t *testing.T) {
	t.Parallel()
	for _, text := range []string{one + "," + two, one + "\n" + two + "\n", " " + one + " , " + two + ",", "# ours\n" + one + "\r\n\n  # and\n" + two} {
		r := parse(t, text)
		if r.Primary() != 1 || !r.Holds(1) || !r.Holds(2) || r.Holds(3) || len(r.Keys()) != 2 {
			t.Errorf("%q: %v", text, r)
		}
	}
	if r := parse(t, two+","+one); r.Primary() != 2 {
		t.Error("the first encrypts")
	}
	var none *Ring
	if none.Primary() != 0 || none.Holds(1) || none.Keys() != nil || none.String() != "" {
		t.Error("a nil ring is empty")
	}
}

func TestC11_ParseRefusesAndNeverQuotes(t *testing.T) {
	t.Parallel()
	secret := strings.TrimPrefix(one, "v1:")
	for text, want := range map[string]string{
		"":                          "no key",
		"# v1:":                     "no key",
		secret:                      "key number 1: must be v<number>",
		"v0:" + secret:              "must be v<number>",
		"v01:" + secret:             "must be v<number>",
		"1:" + secret:               "must be v<number>",
		"v99999999999:" + secret:    "at most 2147483647",
		"v1:" + secret[:40]:         "base64 of 32 bytes",
		"v1:" + secret + "AAAA":     "base64 of 32 bytes",
		"v1:" + secret[1:]:          "base64 of 32 bytes",
		"v1:*" + secret[1:]:         "base64 of 32 bytes",
		one + "," + "v1:" + two[3:]: "key number 2: v1 is given twice",
		one + ",v2:" + secret:       "v2 is the same key as v1",
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		} else if strings.Contains(err.Error(), secret[:10]) {
			t.Errorf("%q: the error quotes the key: %v", text, err)
		}
	}
}

func TestC11_GenerateMakesKeys(t *testing.T) {
	t.Parallel()
	a, b := Generate(3), Generate(3)
	if a == b || parse(t, a).Primary() != 3 {
		t.Error(a, b)
	}
}

func TestC11_WhatIsSealedOpensInItsPlaceOnly(t *testing.T) {
	t.Parallel()
	r := parse(t, one+","+two)
	context := []byte("here")
	for _, value := range []string{"x", "a secret", strings.Repeat("ä", 5000), ""} {
		sealed, err := r.Seal(1, []byte(value), context)
		if err != nil || len(sealed) != len(value)+Overhead {
			t.Fatal(err, len(sealed))
		}
		again, _ := r.Seal(1, []byte(value), context)
		if bytes.Equal(sealed, again) {
			t.Error("the same ciphertext twice")
		}
		if got, err := r.Open(1, sealed, context); err != nil || string(got) != value {
			t.Errorf("%q %v", got, err)
		}
		// The same key in another ring.
		if got, err := parse(t, one).Open(1, sealed, context); err != nil || string(got) != value {
			t.Errorf("%q %v", got, err)
		}
		for what, open := range map[string]func() ([]byte, error){
			"another context":    func() ([]byte, error) { return r.Open(1, sealed, []byte("Here")) },
			"a longer context":   func() ([]byte, error) { return r.Open(1, sealed, []byte("here\x00")) },
			"no context":         func() ([]byte, error) { return r.Open(1, sealed, nil) },
			"another version":    func() ([]byte, error) { return r.Open(2, sealed, context) },
			"cut short":          func() ([]byte, error) { return r.Open(1, sealed[:len(sealed)-1], context) },
			"with something on":  func() ([]byte, error) { return r.Open(1, append(bytes.Clone(sealed), 0), context) },
			"nothing":            func() ([]byte, error) { return r.Open(1, nil, context) },
			"less than overhead": func() ([]byte, error) { return r.Open(1, sealed[:Overhead-1], context) },
		} {
			if got, err := open(); !errors.Is(err, ErrNotAuthentic) || got != nil {
				t.Errorf("%s: %q %v", what, got, err)
			}
		}
		if _, err := r.Open(3, sealed, context); !errors.Is(err, ErrNoKey) {
			t.Error(err)
		}
	}
	if _, err := r.Seal(3, nil, nil); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
	if _, err := (*Ring)(nil).Seal(1, nil, nil); !errors.Is(err, ErrNoKey) {
		t.Error(err)
	}
}

func TestC11_EveryFlippedBitIsNoticed(t *testing.T) {
	t.Parallel()
	r := parse(t, one)
	sealed, err := r.Seal(1, []byte("a secret"), []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(sealed) * 8 {
		flipped := bytes.Clone(sealed)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := r.Open(1, flipped, []byte("here")); !errors.Is(err, ErrNotAuthentic) {
			t.Fatalf("bit %d: %v", bit, err)
		}
	}
}

// The version is bound too: else a database's writer could make an old key's ciphertext a new key's.
func TestC11_TheVersionIsBound(t *testing.T) {
	t.Parallel()
	sealed, err := parse(t, one).Seal(1, []byte("a secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	renamed := parse(t, "v7:"+strings.TrimPrefix(one, "v1:"))
	if _, err := renamed.Open(7, sealed, nil); !errors.Is(err, ErrNotAuthentic) {
		t.Error(err)
	}
}

func TestC11_NoSpellingOfARingShowsAKey(t *testing.T) {
	t.Parallel()
	r := parse(t, one+","+two)
	if want := "v1 (" + r.Keys()[0].Fingerprint.String() + "), v2 ("; !strings.HasPrefix(r.String(), want) {
		t.Error(r)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		text := fmt.Sprintf(verb, r)
		if strings.Contains(text, strings.TrimPrefix(one, "v1:")) || strings.Contains(text, "1, 1, 1, 1") || strings.Contains(text, "01010101") || strings.Contains(text, "1 1 1 1") || !strings.Contains(text, "v1 (") {
			t.Errorf("%s: %s", verb, text)
		}
	}
}

func BenchmarkSealOpen(b *testing.B) {
	r, _ := Parse(Generate(1))
	value, context := bytes.Repeat([]byte("s"), 64), make([]byte, 60)
	for b.Loop() {
		sealed, _ := r.Seal(1, value, context)
		if _, err := r.Open(1, sealed, context); err != nil {
			b.Fatal(err)
		}
	}
}
