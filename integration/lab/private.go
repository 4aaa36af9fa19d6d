package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// A Scratch is a directory of one's own for an Engine and a proxy; users can
// walk through it to their sockets.
type Scratch struct {
	Dir    string
	engine *Engine
}

// NewScratch makes the directory. It needs root, as everything in it does.
func NewScratch() (*Scratch, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this starts a Docker Engine and acts as several users: run it as root")
	}
	// Short, since a socket's path may have 107 bytes.
	dir, err := os.MkdirTemp("", "ds01")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Scratch{Dir: dir}, nil
}

// Make makes a directory in the scratch space.
func (s *Scratch) Make(name string, mode os.FileMode) (string, error) {
	dir := filepath.Join(s.Dir, name)
	if err := os.Mkdir(dir, mode); err != nil {
		return "", err
	}
	return dir, nil
}

// Engine starts the scratch's own Engine, with Image in it and flags added to
// its command line.
func (s *Scratch) Engine(ctx context.Context, flags ...string) (*Engine, error) {
	dir, err := s.Make("engine", 0o711)
	if err != nil {
		return nil, err
	}
	e, err := StartEngine(ctx, dir, flags...)
	if err != nil {
		return nil, err
	}
	s.engine = e
	if err := e.Import(ctx); err != nil {
		return nil, fmt.Errorf("the Engine's image: %w", err)
	}
	return e, nil
}

// Close ends the Engine and removes the directory.
func (s *Scratch) Close() error {
	var err error
	if s.engine != nil {
		err = s.engine.Stop()
	}
	Unmount(s.Dir)
	return errors.Join(err, os.RemoveAll(s.Dir))
}
