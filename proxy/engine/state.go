package engine

import (
	"context"
	"fmt"
)

// State is what the Engine says of itself.
type State struct {
	Version
	Info
}

// State returns what the Engine says of itself, asking it only where that is
// not known yet.
func (x *Index) State(ctx context.Context) (*State, error) {
	x.mu.RLock()
	st := x.state
	x.mu.RUnlock()
	if st != nil {
		return st, nil
	}
	return x.readState(ctx)
}

func (x *Index) readState(ctx context.Context) (*State, error) {
	v, err := x.client.Version(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the Engine for its version: %w", err)
	}
	info, err := x.client.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the Engine for its cgroup driver: %w", err)
	}
	st := &State{Version: v, Info: info}
	x.mu.Lock()
	x.state = st
	x.mu.Unlock()
	return st, nil
}
