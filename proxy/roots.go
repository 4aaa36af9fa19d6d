package proxy

import (
	"path/filepath"
	"sync"
	"time"
)

// rootWait is how long a create waits for the file system of a profile's root.
const rootWait = time.Second

// roots resolves the paths of profiles' roots. One question is under way for a path, so
// that a file system that does not answer holds one thread and nobody's binds elsewhere.
type roots struct {
	mu    sync.Mutex
	known map[string]*root
}

// A root is what is known of one path.
type root struct {
	// real is without links, "" where there is no such path.
	real string
	// asking is closed when the question under way is answered; nil without one.
	asking chan struct{}
}

// real is a path without links, "" where there is none; where the file system is silent,
// what it was last.
func (r *roots) real(path string) string {
	r.mu.Lock()
	if r.known == nil {
		r.known = make(map[string]*root)
	}
	one := r.known[path]
	if one == nil {
		one = &root{}
		r.known[path] = one
	}
	if one.asking == nil {
		one.asking = make(chan struct{})
		go r.ask(path, one)
	}
	asking := one.asking
	r.mu.Unlock()
	timer := time.NewTimer(rootWait)
	defer timer.Stop()
	select {
	case <-asking:
	case <-timer.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return one.real
}

func (r *roots) ask(path string, one *root) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		real = ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	one.real = real
	close(one.asking)
	one.asking = nil
}
