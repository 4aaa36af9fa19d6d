package quota

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// ErrGone means that a container is no more.
var ErrGone = errors.New("no such container")

// A Feed keeps a Book true: it asks about containers of which something was heard. All
// fields must be set.
type Feed struct {
	Book *Book
	// Look asks the Engine about a container. Errors: ErrGone.
	Look func(ctx context.Context, id string) (Container, error)
	Log  *zap.Logger

	mu    sync.Mutex
	dirty map[string]bool
	// failed counts the failures in a row of containers that are to be asked about again.
	failed map[string]int
	busy   int
	wake   chan struct{}
	// listed is true once all containers are in dirty or in the book.
	listed bool
}

// NewFeed returns a Feed that runs by Run.
func NewFeed(b *Book, look func(ctx context.Context, id string) (Container, error), log *zap.Logger) *Feed {
	f := &Feed{Book: b, Look: look, Log: log, dirty: make(map[string]bool), failed: make(map[string]int), wake: make(chan struct{}, 1)}
	b.mu.Lock()
	b.again = f.Changed
	b.mu.Unlock()
	return f
}

// Changed says that something happened to a container.
func (f *Feed) Changed(id string) { f.add(id) }

// Listed says which containers there were at a time.
func (f *Feed) Listed(ids []string, at time.Time) {
	exists := make(map[string]bool, len(ids))
	for _, id := range ids {
		exists[id] = true
	}
	f.Book.Keep(func(id string) bool { return exists[id] }, at)
	f.add(ids...)
	f.mu.Lock()
	f.listed = true
	f.mu.Unlock()
	f.settled()
}

// Lost says that nothing is heard of containers until they are listed again: an Engine
// that went away may come back with others running.
func (f *Feed) Lost() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listed = false
	f.Book.Lost()
}

func (f *Feed) add(ids ...string) {
	f.mu.Lock()
	for _, id := range ids {
		f.dirty[id] = true
	}
	f.mu.Unlock()
	f.poke()
}

func (f *Feed) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// lookers is how many containers are asked about at once, and lookTime how long the
// Engine may take: it waits for whoever copies from a container, which is its user's doing.
const (
	lookers  = 16
	lookTime = 5 * time.Second
)

// retryAfter is how long a container waits that could not be asked about, and doubles with
// each failure, longest times.
const (
	retryAfter = time.Second
	longest    = 6
)

// Run asks until ctx ends.
func (f *Feed) Run(ctx context.Context) {
	slots := make(chan struct{}, lookers)
	for {
		id, ok := f.next()
		if !ok {
			f.settled()
			select {
			case <-ctx.Done():
				return
			case <-f.wake:
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case slots <- struct{}{}:
		}
		go func() {
			f.look(ctx, id)
			<-slots
			f.mu.Lock()
			f.busy--
			f.mu.Unlock()
			f.poke()
		}()
	}
}

// next takes one that is to be asked about.
func (f *Feed) next() (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.dirty {
		delete(f.dirty, id)
		f.busy++
		return id, true
	}
	return "", false
}

// settled lets requests go on once everything was looked at.
func (f *Feed) settled() {
	if f.Idle() {
		f.Book.Synced()
	}
}

func (f *Feed) look(ctx context.Context, id string) {
	version := f.Book.Version(id)
	looking, cancel := context.WithTimeout(ctx, lookTime)
	c, err := f.Look(looking, id)
	cancel()
	f.mu.Lock()
	times := f.failed[id] + 1
	if delete(f.failed, id); err != nil && !errors.Is(err, ErrGone) {
		f.failed[id] = times
	}
	f.mu.Unlock()
	switch {
	case errors.Is(err, ErrGone):
		f.Book.Gone(id)
	case ctx.Err() != nil:
	case err != nil:
		wait := retryAfter << min(times-1, longest)
		f.Log.Warn("cannot tell what a container holds; asking again", zap.String("container", id), zap.Duration("in", wait), zap.Error(err))
		time.AfterFunc(wait, func() { f.add(id) })
	case !f.Book.Set(c, version):
		// Something is newer than this answer.
		f.add(id)
	}
}

// Unknown are the containers that could not be asked about: whose they are has to wait,
// and nobody else.
func (f *Feed) Unknown() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failed) == 0 {
		return nil
	}
	return slices.Collect(maps.Keys(f.failed))
}

// Idle reports whether nothing is left to be asked, but for what has failed.
func (f *Feed) Idle() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.listed && len(f.dirty) == 0 && f.busy == 0
}
