package api

import (
	"archive/zip"
	"context"
	"errors"
	"io"
	"path"
	"strings"

	"github.com/google/uuid"

	"github.com/alkdev/hub/gen/api"
	"github.com/alkdev/hub/gen/db"
	"github.com/alkdev/hub/internal/opencode"
	"github.com/alkdev/hub/internal/store"
)

// maxTreeFiles is how many sessions an archive may hold.
const maxTreeFiles = 10_000

// ExportSessionTree implements the contract's operation.
func (s *Server) ExportSessionTree(ctx context.Context, r api.ExportSessionTreeRequestObject) (api.ExportSessionTreeResponseObject, error) {
	return s.export(ctx, r.SessionId, "application/zip", ".zip", func(q *db.Queries, root db.Session, w io.Writer) error {
		rows, err := q.ListSessionTreeForExport(ctx, root.ID)
		if err != nil {
			return err
		}
		archive := zip.NewWriter(w)
		used := map[string]bool{}
		for _, row := range rows {
			name := deref(row.SourceID)
			if !isHarmlessID(name) || strings.HasPrefix(name, ".") || used[name] {
				name = row.Slug
			}
			if used[name] {
				name = row.ID.String()
			}
			used[name] = true
			file, err := archive.CreateHeader(&zip.FileHeader{Name: name + ".json", Method: zip.Deflate, Modified: row.UpdatedAt})
			if err != nil {
				return err
			}
			if err := writeExport(ctx, q, row, file); err != nil {
				return err
			}
		}
		return archive.Close()
	})
}

// treeFile is one session of an archive that is imported.
type treeFile struct {
	*zip.File
	outline *opencode.Session
}

// ImportSessionTree implements the contract's operation. As with a single file, all of it is checked before a transaction begins.
func (s *Server) ImportSessionTree(ctx context.Context, r api.ImportSessionTreeRequestObject) (api.ImportSessionTreeResponseObject, error) {
	body := &spool{dir: s.TempDir}
	defer body.Close()
	if _, err := io.Copy(body, r.Body); err != nil {
		return nil, err
	}
	files, err := s.readTree(body)
	if err != nil {
		return nil, err
	}
	done, err := s.beginTransfer(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	var result api.SessionTreeImport
	err = retrying(func() error {
		result, err = s.importTree(ctx, r.Params.ProjectId, files)
		return err
	})
	if err != nil {
		return nil, err
	}
	return api.ImportSessionTree200JSONResponse(result), nil
}

// readTree checks each file of an archive. Unpacked, too, they may be as long as an import.
func (s *Server) readTree(body *spool) ([]treeFile, error) {
	at, size, err := body.ReaderAt()
	if err != nil {
		return nil, errSpool(err)
	}
	archive, err := zip.NewReader(at, size)
	if err != nil {
		return nil, refuse("invalid_archive", api.FieldError{Pointer: "", Message: "is no zip archive"})
	}
	var files []treeFile
	left := s.MaxImport
	for _, file := range archive.File {
		base := path.Base(file.Name)
		if file.FileInfo().IsDir() || !strings.HasSuffix(base, ".json") || strings.HasPrefix(base, ".") || strings.HasPrefix(file.Name, "__MACOSX/") {
			continue
		}
		outline, err := scanFile(file, &left)
		if left < 0 {
			return nil, tooLarge(s.MaxImport)
		}
		if err != nil {
			return nil, err
		}
		if files = append(files, treeFile{file, outline}); len(files) > maxTreeFiles {
			return nil, refuse("invalid_archive", api.FieldError{Pointer: "", Message: "holds more than 10000 sessions"})
		}
	}
	if len(files) == 0 {
		return nil, refuse("invalid_archive", api.FieldError{Pointer: "", Message: "holds no *.json file"})
	}
	return files, nil
}

// scanFile reads one file of an archive; left is how many bytes all of them may still have, and below 0 afterwards if they were more.
func scanFile(file *zip.File, left *int64) (*opencode.Session, error) {
	unreadable := func(err error) error {
		return refuse("invalid_archive", api.FieldError{Pointer: pointerToken(strings.ToValidUTF8(file.Name, "\uFFFD")), Message: "cannot be unpacked: " + err.Error()})
	}
	text, err := file.Open()
	if err != nil {
		return nil, unreadable(err)
	}
	defer text.Close()
	counted := &countingReader{Reader: io.LimitReader(text, *left+1)}
	outline, err := opencode.Scan(counted)
	*left -= counted.n
	if counted.err != nil {
		return nil, unreadable(counted.err)
	}
	return outline, at(pointerToken(strings.ToValidUTF8(file.Name, "\uFFFD")), err)
}

// countingReader counts what was read, and keeps the error that ended it.
type countingReader struct {
	io.Reader
	n   int64
	err error
}

func (r *countingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

// importTree stores all files in one transaction.
func (s *Server) importTree(ctx context.Context, project uuid.UUID, files []treeFile) (result api.SessionTreeImport, err error) {
	var in *importer
	var file treeFile
	err = s.store.Tx(ctx, store.ReadCommitted, func(q *db.Queries) error {
		for _, file = range files {
			text, err := file.Open()
			if err != nil {
				return err
			}
			in = newImporter(project, file.outline)
			err = in.run(ctx, q, text)
			text.Close()
			if err != nil {
				return err
			}
			result.Items = append(result.Items, api.SessionTreeImportItem{File: strings.ToValidUTF8(file.Name, "\uFFFD"), Session: in.result})
		}
		return nil
	})
	if err == nil || in == nil {
		return result, err
	}
	if err = s.pointAt(ctx, err, in); err != nil {
		var p *problem
		if errors.As(err, &p) {
			for i, fault := range p.Errors {
				if strings.HasPrefix(fault.Pointer, "/") {
					p.Errors[i].Pointer = pointerToken(strings.ToValidUTF8(file.Name, "\uFFFD")) + fault.Pointer
				}
			}
		}
	}
	return api.SessionTreeImport{}, err
}
