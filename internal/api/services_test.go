package api_test

import (
	"github.com/alkdev/hub/internal/keyring"
)

// newRing is a ring of new keys with these versions; the first encrypts.
func newRing(versions ...int32) *keyring.Ring {
	return ringOf(newKeys(versions...), versions...)
}

// newKeys are the texts of new keys, by version.
func newKeys(versions ...int32) map[int32]string {
	keys := map[int32]string{}
	for _, version := range versions {
		keys[version] = keyring.Generate(version)
	}
	return keys
}

func ringOf(keys map[int32]string, versions ...int32) *keyring.Ring {
	var text string
	for _, version := range versions {
		text += keys[version] + "\n"
	}
	ring, err := keyring.Parse(text)
	if err != nil {
		panic(err)
	}
	return ring
}
