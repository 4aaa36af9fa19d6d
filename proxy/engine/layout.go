package engine

import (
	"context"
	"net/url"
)

// A Layout is where a container is on the host.
type Layout struct {
	// Merged is where its file system is mounted, for the drivers that say so.
	Merged string
	Mounts []Mount
	// Alive is true while it runs or is about to start again.
	Alive bool
}

// A Mount is a directory or file that a container has from elsewhere.
type Mount struct {
	Type, Source, Destination string
	RW                        bool
}

// Layout asks where a container is.
func (c *Client) Layout(ctx context.Context, id string) (Layout, error) {
	var one struct {
		State       struct{ Running, Restarting, Paused bool }
		GraphDriver struct{ Data map[string]string }
		Mounts      []Mount
	}
	err := c.getJSON(ctx, "/containers/"+url.PathEscape(id)+"/json", &one)
	return Layout{
		Merged: one.GraphDriver.Data["MergedDir"], Mounts: one.Mounts,
		Alive: one.State.Running || one.State.Restarting || one.State.Paused,
	}, err
}
