// Package images remembers who wrote the names of images, and who brought an
// image that has none: the Engine knows neither.
package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01-proxy/proxy/statefile"
)

// A Writer is who wrote a tag.
type Writer struct {
	User string `json:"user"`
	// Pulled is true where the tag came from a registry, so that whoever pulls it
	// gets the same.
	Pulled bool `json:"pulled,omitempty"`
	// Since is when it was written, or was about to be.
	Since time.Time `json:"since"`
}

// state is the file's form.
type state struct {
	Version int `json:"version"`
	// Tags are writers by name with tag, in the short form that clients show.
	Tags map[string]Writer `json:"tags"`
	// Images are those who loaded or imported an image, by its ID.
	Images map[string][]string `json:"images"`
}

// version of the file's form.
const version = 1

// A Register remembers writers in a file. All methods may be called concurrently.
type Register struct {
	path string
	now  func() time.Time

	mu    sync.Mutex
	state state
	// busy are the names that somebody is writing or removing at this moment; held
	// counts them by user.
	busy map[string][]*hold
	held map[string]int
	// saving is held while the file is written, which is done without mu; changed
	// counts changes, saved is the count that the file has.
	saving         sync.Mutex
	changed, saved uint64
}

// A hold is one request's reservation of a name.
type hold struct {
	user   string
	shared bool
}

// A HeldError says that somebody else has a name reserved.
type HeldError struct{ User string }

// Error names them.
func (e *HeldError) Error() string { return e.User + " is writing it" }

// maxHeld is how many names one user may have reserved at a time.
const maxHeld = 256

// Open reads the register in path, which need not exist yet.
func Open(path string, now func() time.Time) (*Register, error) {
	r := &Register{path: path, now: now, busy: make(map[string][]*hold), held: make(map[string]int),
		state: state{Version: version, Tags: make(map[string]Writer), Images: make(map[string][]string)}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image register: %w", err)
	}
	r.state = state{}
	if err := json.Unmarshal(text, &r.state); err != nil {
		return nil, fmt.Errorf("image register %s cannot be read: %w; mend it, or move it away and lose who wrote which tag", path, err)
	}
	if r.state.Version != version {
		return nil, fmt.Errorf("image register %s has the version %d and this daemon knows %d; move it away and lose who wrote which tag", path, r.state.Version, version)
	}
	if r.state.Tags == nil {
		r.state.Tags = make(map[string]Writer)
	}
	if r.state.Images == nil {
		r.state.Images = make(map[string][]string)
	}
	return r, nil
}

// Begin reserves names for a user who is about to write or remove them: own for the
// user alone, shared together with others who share them. Nothing is reserved where
// that cannot be had. Errors: HeldError. The function returned gives the names back.
func (r *Register) Begin(user string, own, shared []string) (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := len(own) + len(shared)
	if r.held[user]+total > maxHeld {
		return nil, fmt.Errorf("you are writing more than %d tags at once; wait until some are done", maxHeld)
	}
	for i, name := range append(own[:len(own):len(own)], shared...) {
		for _, h := range r.busy[name] {
			if h.user != user && !(h.shared && i >= len(own)) {
				return nil, &HeldError{h.user}
			}
		}
	}
	holds := make(map[string]*hold, total)
	for i, name := range append(own[:len(own):len(own)], shared...) {
		if holds[name] == nil {
			h := &hold{user: user, shared: i >= len(own)}
			holds[name] = h
			r.busy[name] = append(r.busy[name], h)
		}
	}
	r.held[user] += total
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for name, h := range holds {
			if r.busy[name] = slices.DeleteFunc(r.busy[name], func(o *hold) bool { return o == h }); len(r.busy[name]) == 0 {
				delete(r.busy, name)
			}
		}
		if r.held[user] -= total; r.held[user] == 0 {
			delete(r.held, user)
		}
	}, nil
}

// Writer returns who wrote a tag.
func (r *Register) Writer(tag string) (w Writer, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, known = r.state.Tags[tag]
	return w, known
}

// Builders returns who brought an image, by its ID.
func (r *Register) Builders(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.Images[id]
}

// Wrote remembers that user wrote tags. It returns when the file has it.
func (r *Register) Wrote(user string, pulled bool, tags []string) error {
	return r.change(func() bool {
		changed := false
		for _, tag := range tags {
			old, known := r.state.Tags[tag]
			if !known || old.User != user || old.Pulled != pulled {
				r.state.Tags[tag] = Writer{User: user, Pulled: pulled, Since: r.now().UTC()}
				changed = true
			}
		}
		return changed
	})
}

// Built remembers that user brought an image.
func (r *Register) Built(user, id string) error {
	return r.change(func() bool {
		if slices.Contains(r.state.Images[id], user) {
			return false
		}
		// What was given out is not changed.
		r.state.Images[id] = append(slices.Clone(r.state.Images[id]), user)
		return true
	})
}

// grace is how long a tag that does not exist keeps its writer: whoever says so may
// have looked before it was written.
const grace = time.Minute

// Keep forgets what does not exist any more.
func (r *Register) Keep(exists func(tagOrID string) bool) error {
	return r.change(func() bool {
		changed := false
		for tag, w := range r.state.Tags {
			if len(r.busy[tag]) == 0 && r.now().Sub(w.Since) > grace && !exists(tag) {
				delete(r.state.Tags, tag)
				changed = true
			}
		}
		for id := range r.state.Images {
			if !exists(id) {
				delete(r.state.Images, id)
				changed = true
			}
		}
		return changed
	})
}

// Forget forgets the writers of tags that were removed.
func (r *Register) Forget(tags []string) error {
	return r.change(func() bool {
		changed := false
		for _, tag := range tags {
			if _, known := r.state.Tags[tag]; known {
				delete(r.state.Tags, tag)
				changed = true
			}
		}
		return changed
	})
}

// change applies f and saves, where f says that it changed something.
func (r *Register) change(f func() bool) error {
	r.mu.Lock()
	if !f() {
		r.mu.Unlock()
		return nil
	}
	r.changed++
	mine := r.changed
	r.mu.Unlock()

	r.saving.Lock()
	defer r.saving.Unlock()
	r.mu.Lock()
	if r.saved >= mine {
		// Somebody who came later has saved this too.
		r.mu.Unlock()
		return nil
	}
	now := r.changed
	text, err := json.Marshal(&r.state)
	r.mu.Unlock()
	if err == nil {
		err = statefile.Replace(r.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("image register: %w", err)
	}
	r.mu.Lock()
	r.saved = now
	r.mu.Unlock()
	return nil
}
