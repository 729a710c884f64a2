package apikey_test

import (
	"crypto/sha256"
	"regexp"
	"testing"

	"github.com/alkdev/hub/internal/apikey"
)

func TestW13_KeysHaveAFormAndASHA256(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^hub_[0-9A-Za-z]{49}$`)
	seen := map[string]bool{}
	for range 1000 {
		key := apikey.New()
		if !form.MatchString(key) {
			t.Fatalf("%q has another form", key)
		}
		if seen[key] {
			t.Fatal("the same key twice")
		}
		seen[key] = true
		hash, err := apikey.Hash(key)
		if err != nil {
			t.Fatal(err)
		}
		if want := sha256.Sum256([]byte(key)); string(hash) != string(want[:]) {
			t.Fatal("not the SHA-256 of the key")
		}
	}
}

func TestMistypedKeysAreRefused(t *testing.T) {
	t.Parallel()
	key := apikey.New()
	swapped := []byte(key)
	for i := 5; ; i++ { // two neighbours that differ
		if swapped[i] != swapped[i+1] {
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			break
		}
	}
	for name, wrong := range map[string]string{
		"empty": "", "cut": key[:len(key)-1], "longer": key + "0", "swapped": string(swapped),
		"other prefix": "hut_" + key[4:], "space": key + " ",
	} {
		if _, err := apikey.Hash(wrong); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := apikey.Hash(key); err != nil {
		t.Errorf("the key itself: %v", err)
	}
}
