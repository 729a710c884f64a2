//go:build !race

package pgjson_test

const raceEnabled = false
