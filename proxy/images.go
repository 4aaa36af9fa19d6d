package proxy

import (
	"net/http"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// maxTags is how many tags one request may write.
const maxTags = 64

// shortTag is the form of a tag that lists, records and messages use. An empty tag
// is latest. Errors are the client's.
func shortTag(repo, tag string) (string, error) {
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", badRequest("invalid reference format: %v", err)
	}
	if _, digested := named.(reference.Digested); digested {
		return "", badRequest("%s: a tag cannot be written with a digest", repo)
	}
	if tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return "", badRequest("invalid tag %q: %v", tag, err)
		}
	}
	return reference.FamiliarString(reference.TagNameOnly(named)), nil
}

// splitTag takes a short form apart.
func splitTag(short string) (repo, tag string) {
	i := strings.LastIndexByte(short, ':')
	return short[:i], short[i+1:]
}

// useTag decides about one tag.
func (x *exchange) useTag(use policy.TagUse, tag string, all engine.ImageList) (policy.Verdict, error) {
	t, err := x.tag(tag, all, true)
	if err != nil {
		return policy.Verdict{}, err
	}
	x.touch(tag)
	return policy.ChangeTag(x.subject, t, use, x.switches().UnownedResources), nil
}

// tag gathers what decides about a tag; who stands on it only where that is asked
// for.
func (x *exchange) tag(tag string, all engine.ImageList, standing bool) (policy.Tag, error) {
	t := policy.Tag{Name: tag}
	w, known := x.srv.Tags.Writer(tag)
	if known {
		t.Writer, t.Pulled = w.User, w.Pulled
	}
	img := all.Tagged(tag)
	if img == nil {
		return t, nil
	}
	t.Present = true
	if !known {
		// Not through here: by a session of BuildKit, by the admin, or pulled.
		t.Pulled = fromRegistry(img, tag)
	}
	if !standing {
		return t, nil
	}
	// Where nobody else has a name for the image, whoever stands on it does by this
	// one, however they came to it.
	only := tag
	if !slices.ContainsFunc(img.RepoTags, func(other string) bool {
		w, known := x.srv.Tags.Writer(other)
		return other != tag && (!known || w.User != x.subject.User)
	}) {
		only = ""
	}
	var err error
	t.Standing, err = x.standing(img, all, only)
	return t, err
}

// standing lists the others whose containers and images stand on an image; with a
// tag, only those whose containers were made by that name.
func (x *exchange) standing(img *engine.Image, all engine.ImageList, tag string) ([]string, error) {
	var others []string
	add := func(owner string) {
		if owner != x.subject.User && !slices.Contains(others, owner) {
			others = append(others, owner)
		}
	}
	containers, err := x.srv.Images.Containers(x.r.Context(), img.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		if made, err := shortTag(c.Image, ""); tag == "" || err == nil && made == tag {
			add(x.ownerOf(c.ID, c.Labels))
		}
	}
	if tag != "" {
		return others, nil
	}
	for i := range all {
		for _, owner := range x.builders(&all[i]) {
			if owner != x.subject.User && slices.Contains(all.Lineage(all[i].ID), img.ID) {
				add(owner)
			}
		}
	}
	return others, nil
}

// builders are those who made an image: who is remembered to have, or else by its
// label. Labels of what a registry has are whoever's who pushed it.
func (x *exchange) builders(img *engine.Image) []string {
	builders := x.srv.Tags.Builders(img.ID)
	if owner := policy.OwnerOf(img.Labels); owner != "" && len(builders) == 0 && len(img.RepoDigests) == 0 {
		return []string{owner}
	}
	return builders
}

// allImages lists all images, once per request, and lets the register forget
// what is not there any more.
func (x *exchange) allImages() (engine.ImageList, error) {
	if x.images != nil {
		return x.images, nil
	}
	all, err := x.srv.Images.All(x.r.Context())
	if err != nil {
		return nil, err
	}
	exists := make(map[string]bool, 2*len(all))
	for i := range all {
		exists[all[i].ID] = true
		for _, tag := range all[i].RepoTags {
			exists[tag] = true
		}
	}
	if err := x.srv.Forgetter.Keep(func(name string) bool { return exists[name] }); err != nil {
		return nil, err
	}
	x.images = all
	return all, nil
}

// image resolves a reference to an image that the subject sees; one that they do
// not see is, to them, not there.
func (x *exchange) image(ref string) (engine.Found, error) {
	all, err := x.allImages()
	if err != nil {
		return engine.Found{}, err
	}
	found, ok := all.Find(ref)
	if !ok {
		return engine.Found{}, x.srv.Images.Explain(x.r.Context(), ref)
	}
	if !x.seesFound(found) {
		return engine.Found{}, noSuchImage(ref)
	}
	x.touch(found.ID)
	return found, nil
}

// tagImage gives an image another name.
func tagImage(x *exchange) (policy.Verdict, error) {
	source := x.vars["name"]
	found, err := x.image(source)
	if err != nil {
		return policy.Verdict{}, err
	}
	tag, err := shortTag(x.query.Get("repo"), x.query.Get("tag"))
	if err != nil {
		return policy.Verdict{}, err
	}
	x.setTag(tag)
	x.path = replaceReference(x.path, "/images/", source, found.ID)
	return x.claimTags(&claim{use: policy.WriteTag, tags: []string{tag}, source: found.ID,
		proof: func(img *engine.Image, _ string) bool { return img.ID == found.ID }})
}

// setTag writes the tag that was decided on into the query.
func (x *exchange) setTag(short string) {
	repo, tag := splitTag(short)
	x.setQuery("repo", repo)
	x.setQuery("tag", tag)
}

// commitTag decides about the name that a commit gives its image.
func (x *exchange) commitTag() (policy.Verdict, error) {
	if x.query.Get("repo") == "" {
		x.query.Del("repo")
		x.query.Del("tag")
		return policy.Pass(), nil
	}
	tag, err := shortTag(x.query.Get("repo"), x.query.Get("tag"))
	if err != nil {
		return policy.Verdict{}, err
	}
	x.setTag(tag)
	return x.claimTags(&claim{use: policy.WriteTag, tags: []string{tag}, proof: x.proved})
}

// buildTags decides about the names that a build gives its image: the parameter t,
// and those of BuildKit's exporters.
func (x *exchange) buildTags(exported []string) (policy.Verdict, error) {
	var tags []string
	for _, list := range [][]string{x.query["t"], exported} {
		for _, name := range list {
			if name == "" {
				continue
			}
			tag, err := shortTag(name, "")
			if err != nil {
				return policy.Verdict{}, err
			}
			tags = append(tags, tag)
		}
	}
	if len(tags) == 0 {
		x.query.Del("t")
		return policy.Pass(), nil
	}
	if _, ok := x.query["t"]; ok {
		x.query["t"] = tags
	}
	return x.claimTags(&claim{use: policy.WriteTag, tags: tags, proof: x.proved})
}

// removeImage removes a name, or an image with all of its names.
func removeImage(x *exchange) (policy.Verdict, error) {
	ref := x.vars["name"]
	found, err := x.image(ref)
	if err != nil {
		return policy.Verdict{}, err
	}
	tags, forward := []string{found.Tag}, engineName(found.Tag)
	if found.Tag == "" {
		tags = found.RepoTags
		switch {
		case found.Named:
			forward = ref
		case len(tags) == 1 && isTrue(x.query.Get("force")):
			// By its ID the Engine would remove a name too that it gets at this moment.
			forward = engineName(tags[0])
		default:
			forward = found.ID
		}
	}
	c := &claim{use: policy.RemoveTag, tags: tags}
	if found.Tag == "" {
		c.whole = found.ID
	}
	v, err := x.claimTags(c)
	if err != nil || !v.Allowed() {
		return v, err
	}
	now, ok := x.images.Find(found.ID)
	if !ok || found.Tag == "" && len(now.RepoTags) != len(tags) {
		return policy.Verdict{}, &statusError{http.StatusConflict, "the image " + ref + " has changed at this moment; try again"}
	}
	if found.Tag == "" || len(now.RepoTags) == 1 {
		// With its last name the image goes too.
		whole, err := x.removeWhole(now.Image)
		if err != nil || !whole.Allowed() {
			return whole, err
		}
		if len(tags) == 0 {
			v = whole
		}
	}
	if x.othersBelow(now.ID, x.images) {
		x.setQuery("noprune", "1")
	}
	x.path = replaceReference(x.path, "/images/", ref, forward)
	x.atEnd(func() {
		if x.rec.Status == http.StatusOK {
			x.logged("forget the writers of removed images", x.srv.Forgetter.Forget(tags))
		}
	})
	return v, nil
}

// engineName is a tag in a form that the Engine cannot take for an ID: a short one
// of a repository called sha256 could be one.
func engineName(short string) string {
	if named, err := reference.ParseNormalizedNamed(short); err == nil && strings.HasPrefix(short, "sha256:") {
		return named.String()
	}
	return short
}

// removeWhole decides about the removal of an image whose names, if any, are
// decided on.
func (x *exchange) removeWhole(img *engine.Image) (policy.Verdict, error) {
	standing, err := x.standing(img, x.images, "")
	if err != nil {
		return policy.Verdict{}, err
	}
	owner := ""
	if builders := x.builders(img); slices.Contains(builders, x.subject.User) || len(builders) == 0 && len(img.RepoTags) > 0 {
		owner = x.subject.User
	} else if len(builders) > 0 {
		owner = builders[0]
	}
	t := policy.Tag{Name: img.ID, Present: true, Writer: owner, Standing: standing}
	return policy.ChangeTag(x.subject, t, policy.RemoveTag, x.switches().UnownedResources), nil
}

// othersBelow reports whether an image was built on a nameless one of somebody
// else's, which the Engine would remove with it.
func (x *exchange) othersBelow(id string, all engine.ImageList) bool {
	for _, below := range all.Lineage(id) {
		for i := range all {
			if all[i].ID != below || len(all[i].RepoTags) > 0 {
				continue
			}
			for _, owner := range x.builders(&all[i]) {
				if owner != x.subject.User {
					return true
				}
			}
		}
	}
	return false
}

// logged puts an error that nobody waits for into the log.
func (x *exchange) logged(what string, err error) {
	if err != nil {
		x.srv.Log.Error(what, zap.Error(err))
	}
}
