package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Waiting times between attempts to reach the Engine.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 2 * time.Second
)

// resyncEvery is how often the index is compared with a fresh list, to mend
// what a lost event left wrong. The Engine drops events for subscribers that
// fall behind, without a word.
const resyncEvery = 5 * time.Minute

// Run keeps the index in step with the Engine until ctx ends. While the Engine
// is away it says so once and goes on trying; look-ups then ask the Engine.
func (x *Index) Run(ctx context.Context) {
	wait := retryMin
	down := false
	for {
		began := time.Now()
		err := x.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		wasSynced := x.unsync()
		if wasSynced && x.Lost != nil {
			x.Lost()
		}
		if wasSynced || !down {
			x.log.Warn("event stream of the Engine ended; asking the Engine for every name until it is back", zap.Error(err))
			down = true
		}
		if wasSynced || time.Since(began) > retryMax {
			wait = retryMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, retryMax)
	}
}

// unsync marks the index as out of step and reports whether it was in step.
func (x *Index) unsync() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	was := x.synced
	x.synced = false
	// The next Engine may be another one.
	x.state = nil
	return was
}

// An event is what the index reads of the Engine's events.
type event struct {
	Type   string
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
	TimeNano int64 `json:"timeNano"`
}

// follow subscribes to the Engine's events, lists the containers and then
// applies every event that is younger than the list. It returns why it ended.
func (x *Index) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := x.readState(ctx); err != nil {
		return err
	}
	// The Engine sends its header before it subscribes, so events in between
	// would be lost; "since" makes it replay them.
	q := url.Values{
		"filters": {`{"type":{"container":true},"event":{"create":true,"rename":true,"destroy":true,"start":true,"die":true,"update":true}}`},
		"since":   {strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)},
	}
	resp, err := x.client.get(ctx, "/events?"+q.Encode())
	if err != nil {
		return fmt.Errorf("subscribe to events: %w", err)
	}
	defer resp.Body.Close()

	events := make(chan event, 1024)
	ended := make(chan error, 1)
	go func() {
		defer close(events)
		dec := json.NewDecoder(resp.Body)
		for {
			var e event
			if err := dec.Decode(&e); err != nil {
				if errors.Is(err, io.EOF) {
					err = errors.New("the Engine closed it")
				}
				ended <- err
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	}()

	since, err := x.reload(ctx)
	if err != nil {
		return err
	}
	n, _, _ := x.Size()
	x.log.Info("in step with the Engine", zap.Int("containers", n))
	resync := time.NewTicker(resyncEvery)
	defer resync.Stop()
	for {
		select {
		case e, open := <-events:
			if !open {
				return <-ended
			}
			if e.TimeNano >= since {
				x.apply(ctx, e)
				if e.Action == "destroy" && x.Gone != nil {
					go x.Gone(e.Actor.ID)
				}
				if x.Changed != nil {
					x.Changed(e.Actor.ID)
				}
			}
		case <-resync.C:
			if since, err = x.reload(ctx); err != nil {
				return err
			}
		}
	}
}

// reload replaces the table with a fresh list and returns the time, in
// nanoseconds since 1970 by the clock that events carry too, before which
// events are already in it.
func (x *Index) reload(ctx context.Context) (since int64, err error) {
	since = time.Now().UnixNano()
	x.mu.Lock()
	for _, e := range x.table.byID {
		for _, c := range e.changes {
			// Changes that were answered before the list was asked for are in it.
			if c.answered {
				x.table.setChanges(e, without(e.changes, c))
			}
		}
	}
	x.mu.Unlock()
	fresh, err := x.listTable(ctx)
	if err != nil {
		return 0, fmt.Errorf("list containers: %w", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, old := range x.table.byID {
		// Created while the list was on its way, or removed since: an ID's owner
		// never changes, so it may stay; a name may not.
		e := fresh.byID[id]
		if e != nil && e.doubtful && !old.doubtful {
			sure := *old
			sure.changes = nil
			fresh.adopt(&sure)
			e = fresh.byID[id]
		}
		if e == nil && len(old.changes) > 0 {
			e = fresh.add(&entry{id: old.id, owner: old.owner, protected: old.protected, legacy: old.legacy, labelled: old.labelled, doubtful: old.doubtful})
		}
		if e != nil {
			fresh.setChanges(e, old.changes)
		}
	}
	x.table = fresh
	var orphans []string
	for id, e := range fresh.byID {
		if e.doubtful {
			orphans = append(orphans, id)
		}
	}
	go func() {
		for _, id := range orphans {
			x.adopt(ctx, id)
		}
	}()
	for exec, id := range x.execs {
		if fresh.byID[id] == nil {
			// The slot in the ring stays until its turn comes.
			delete(x.execs, exec)
		}
	}
	x.synced = true
	if x.Listed != nil {
		ids := make([]string, 0, len(fresh.byID))
		for id := range fresh.byID {
			ids = append(ids, id)
		}
		go x.Listed(ids, time.Unix(0, since))
	}
	if x.Known != nil {
		// The table that was listed is not changed by this.
		ids := make(map[string]*entry, len(fresh.byID))
		for id, e := range fresh.byID {
			ids[id] = &entry{owner: e.owner, binds: e.binds}
		}
		go func() {
			for id, e := range ids {
				if len(e.binds) > 0 && x.Uses != nil {
					x.Uses(id, e.owner, e.binds)
				}
			}
			x.Known(func(id string) bool {
				_, there := ids[id]
				return there
			})
		}()
	}
	return since, nil
}

// made returns the entry of a container that an event says was created, or nil
// where it is gone already.
func (x *Index) made(ctx context.Context, ev event) *entry {
	// The attributes of a container's event are its labels, and name and image.
	c := Container{ID: ev.Actor.ID, Names: []string{ev.Actor.Attributes["name"]}, Labels: ev.Actor.Attributes, Image: ev.Actor.Attributes["image"]}
	e := entryOf(c)
	if !e.doubtful || x.UserOfParent == nil {
		return e
	}
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	whole, err := x.client.Inspect(ctx, c.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return e
	}
	return x.settled(e, whole.CgroupParent)
}

// adoptTimeout bounds the question whose a container is while its event waits.
const adoptTimeout = 2 * time.Second

// apply brings one event into the table.
func (x *Index) apply(ctx context.Context, ev event) {
	if ev.Type != "container" {
		return
	}
	var made *entry
	if ev.Action == "create" {
		if made = x.made(ctx, ev); made == nil {
			return
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.table.byID[ev.Actor.ID]
	name := strings.TrimPrefix(ev.Actor.Attributes["name"], "/")
	switch ev.Action {
	case "create":
		if len(made.binds) > 0 && x.Uses != nil {
			go x.Uses(made.id, made.owner, made.binds)
		}
		if e == nil {
			x.table.add(made)
		} else if e.name == "" && len(e.changes) == 0 {
			x.table.rename(e, name)
		}
	case "destroy":
		x.table.remove(ev.Actor.ID)
	case "rename":
		if e == nil {
			return
		}
		x.table.rename(e, name)
		if len(e.changes) > 0 {
			x.table.setChanges(e, e.changes[1:len(e.changes):len(e.changes)])
		}
	}
}
