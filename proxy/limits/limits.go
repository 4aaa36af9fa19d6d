// Package limits reads what users may take of the machine: resource-limits.yaml and,
// beside it, groups/<group>.members and user-overrides.yaml. The layout is described in
// default.yaml, which holds where there is no file.
package limits

import (
	"path/filepath"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
)

// A Store holds the limits that were last read without a problem. Its methods may be
// called at the same time.
type Store struct {
	path    string
	log     *zap.Logger
	current atomic.Pointer[state]

	// reloading guards noted, the keys that were warned of.
	reloading sync.Mutex
	noted     map[string]bool
}

// Open reads the limits file at path, which need not exist, and what stands beside it.
// Keys that are not known are warned of in the log, each once. The error is Problems.
func Open(path string, log *zap.Logger) (*Store, error) {
	s := &Store{path: filepath.Clean(path), log: log, noted: make(map[string]bool)}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// Reload reads the files again. On problems the limits stay as they were, and the error
// is Problems. A limits file that is gone is one: what it said holds until a restart.
func (s *Store) Reload() error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	next, problems := load(s.path, readFile)
	if len(problems) > 0 {
		return problems
	}
	if last := s.current.Load(); last != nil && last.read && !next.read {
		return Problems{{File: s.path, Text: "is gone; the built-in limits hold after a restart"}}
	}
	s.current.Store(next)
	for _, n := range next.notes {
		if !s.noted[n.File+n.Text] {
			s.noted[n.File+n.Text] = true
			s.log.Warn(n.String())
		}
	}
	return nil
}

// Of returns the limits of a user of a group: the defaults, under what the group says,
// under what is said of the user, field by field. For a group that the file does not
// have, those of the default group. MemorySwap is never below Memory, and may be set where
// Memory is not. What the result points at is shared and must not be written to. It takes
// no lock and reads no file.
func (s *Store) Of(user, group string) policy.Limits { return s.current.Load().of(user, group) }

// GroupOf returns a user's group: the first of the file that lists the user or has, in
// system_group, a group of the system that the user is in; else the default group. in
// reports whether the user is in one of the named groups of the system, and is asked only
// about those that could decide; nil means in none. Errors are those of in.
func (s *Store) GroupOf(user string, in func(groups []string) (bool, error)) (string, error) {
	return s.current.Load().groupOf(user, in)
}

// Admins returns whom no limit applies to: names of users, and of groups of the system.
// The lists are shared and must not be written to.
func (s *Store) Admins() (users, groups []string) {
	now := s.current.Load()
	return now.adminUsers, now.adminGroups
}

// Notes returns what the files have that is not read, or does not mean what it seems to.
func (s *Store) Notes() []Problem { return s.current.Load().notes }

// Explain returns every limit of a user of a group, and what sets it.
func (s *Store) Explain(user, group string) []Line {
	now := s.current.Load()
	layers := []*layer{now.defaults, now.groupNamed(group).layer}
	if o := now.overrides[user]; o != nil {
		layers = append(layers, o.layer)
	}
	return explain(merge(layers...))
}
