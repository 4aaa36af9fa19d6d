package proxy

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/docker/docker/api/types/filters"
	timetypes "github.com/docker/docker/api/types/time"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// pruneImages removes the subject's own unused images one by one. The Engine's
// prune goes by labels alone: it would take names of others' with an image, and
// whatever image has no configuration to carry labels.
func pruneImages(x *exchange) (policy.Verdict, error) {
	args, err := x.filters()
	if err != nil {
		return policy.Verdict{}, err
	}
	p := &imagePrune{x: x, args: args}
	if err := p.read(); err != nil {
		return policy.Verdict{}, err
	}
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "own-only"}
	if x.subject.Mode != policy.ModeFull {
		return verdict, nil
	}
	err = p.run()
	if p.open.Outcome == policy.FailOpen {
		// Whatever came of the rest, it was let through.
		verdict = p.open
		x.verdict = verdict
		x.decided()
	}
	if err != nil {
		return verdict, err
	}
	x.local, err = json.Marshal(map[string]any{"ImagesDeleted": p.done, "SpaceReclaimed": p.space})
	return verdict, err
}

// An imagePrune is one prune.
type imagePrune struct {
	x        *exchange
	args     filters.Args
	dangling bool
	// open is what was let through because of a switch.
	open  policy.Verdict
	until time.Time
	done  []engine.Removed
	// space is what was freed, in bytes, as far as sizes tell.
	space int64
}

// read reads the client's filters and refuses those that the Engine would.
func (p *imagePrune) read() error {
	accepted := map[string]bool{"dangling": true, "label": true, "label!": true, "until": true}
	if err := p.args.Validate(accepted); err != nil {
		return badRequest("%v", err)
	}
	var err error
	if p.dangling, err = p.args.GetBoolOrDefault("dangling", true); err != nil {
		return badRequest("%v", err)
	}
	switch until := p.args.Get("until"); len(until) {
	case 0:
	case 1:
		stamp, err := timetypes.GetTimestamp(until[0], p.x.srv.Now())
		if err != nil {
			return badRequest("%v", err)
		}
		seconds, nanos, err := timetypes.ParseTimestamps(stamp, 0)
		if err != nil {
			return badRequest("%v", err)
		}
		p.until = time.Unix(seconds, nanos)
	default:
		return badRequest("more than one until filter specified")
	}
	return nil
}

// run removes what there is to remove.
func (p *imagePrune) run() error {
	all, err := p.x.allImages()
	if err != nil {
		return err
	}
	parents := make(map[string]bool, len(all))
	for i := range all {
		parents[all[i].Parent] = true
	}
	for i := range all {
		img := &all[i]
		if len(img.RepoTags) == 0 && parents[img.ID] || !p.wants(img) {
			continue
		}
		if err := p.remove(img, all); err != nil {
			return err
		}
	}
	p.count(all)
	return nil
}

// wants reports whether an image is the subject's and what the filters say.
func (p *imagePrune) wants(img *engine.Image) bool {
	if !slices.Contains(p.x.builders(img), p.x.subject.User) || p.dangling && len(img.RepoTags) > 0 {
		return false
	}
	if !p.until.IsZero() && time.Unix(img.Created, 0).After(p.until) {
		return false
	}
	if p.args.Contains("label") && !p.args.MatchKVList("label", img.Labels) {
		return false
	}
	return !p.args.Contains("label!") || !p.args.MatchKVList("label!", img.Labels)
}

// remove removes one image with its names, unless one of them is another user's or
// something stands on it.
func (p *imagePrune) remove(img *engine.Image, all engine.ImageList) error {
	x := p.x
	standing, err := x.standing(img, all, "")
	if err != nil || len(standing) > 0 {
		return err
	}
	for _, tag := range img.RepoTags {
		v, err := x.useTag(policy.RemoveTag, tag, all)
		if err != nil || !v.Allowed() {
			return err
		}
		if v.Outcome == policy.FailOpen {
			p.open = v
		}
	}
	end, err := x.srv.Tags.Begin(x.subject.User, append(slices.Clone(img.RepoTags), img.ID), nil)
	if err != nil {
		// Somebody is writing one of them.
		return nil
	}
	defer end()
	names := []string{img.ID}
	if len(img.RepoTags) > 0 {
		names = nil
		for _, tag := range img.RepoTags {
			names = append(names, engineName(tag))
		}
	}
	for _, name := range names {
		done, err := x.srv.Registry.Remove(x.r.Context(), name, x.othersBelow(img.ID, all))
		var status *engine.StatusError
		if errors.As(err, &status) && (status.Status == http.StatusConflict || status.Status == http.StatusNotFound) {
			// In use, or gone by now.
			return nil
		}
		if err != nil {
			return err
		}
		p.done = append(p.done, done...)
	}
	x.logged("forget the writers of pruned images", x.srv.Forgetter.Forget(img.RepoTags))
	return nil
}

// count adds up what the images that are gone had beside what they were built on.
func (p *imagePrune) count(all engine.ImageList) {
	sizes := make(map[string]int64, len(all))
	for i := range all {
		sizes[all[i].ID] = all[i].Size
	}
	for i := range all {
		if slices.ContainsFunc(p.done, func(r engine.Removed) bool { return r.Deleted == all[i].ID }) {
			p.space += all[i].Size - sizes[all[i].Parent]
		}
	}
}
