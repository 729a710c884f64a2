// Package sql carries the migrations into the program.
package sql

import "embed"

// Migrations holds migrations/NNNN_<domain>.up.sql and .down.sql.
//
//go:embed migrations/*.sql
var Migrations embed.FS
