package proxy

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// pull decides about tags that a registry's content is to get.
func (x *exchange) pull(ctx context.Context) (policy.Verdict, error) {
	name := strings.TrimSuffix(x.query.Get("fromImage"), ":")
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return policy.Verdict{}, badRequest("invalid reference format: %v", err)
	}
	if tag := x.query.Get("tag"); strings.Contains(tag, ":") {
		// A digest, which no tag can be.
		if named, err = reference.ParseNormalizedNamed(reference.TrimNamed(named).String() + "@" + tag); err != nil {
			return policy.Verdict{}, badRequest("invalid digest %q: %v", tag, err)
		}
	} else if tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return policy.Verdict{}, badRequest("invalid tag %q: %v", tag, err)
		}
	}
	platform := x.query.Get("platform")
	x.query = url.Values{"fromImage": {reference.TrimNamed(named).String()}}
	if platform != "" {
		x.setQuery("platform", platform)
	}
	switch ref := named.(type) {
	case reference.Digested:
		// A digest says what comes; no tag is written.
		x.setQuery("tag", ref.Digest().String())
		return policy.Pass(), nil
	case reference.Tagged:
		x.setQuery("tag", ref.Tag())
		return x.pullTag(ctx, reference.FamiliarString(named), platform)
	}
	return x.pullAll(reference.FamiliarName(named))
}

// pullTag lets a pull through unless it would move a tag under others' feet. Where
// they stand on what the registry has anyway, it goes on by digest, whatever the
// registry may say next. Another platform's image is other content, as if the
// caller wrote it.
func (x *exchange) pullTag(ctx context.Context, tag, platform string) (policy.Verdict, error) {
	c := &claim{use: policy.PullTag, tags: []string{tag}, pulled: true, proof: fromRegistry}
	same, err := x.samePlatform(ctx, tag, platform)
	if err != nil {
		return policy.Verdict{}, err
	}
	if !same {
		c.use = policy.WriteTag
	}
	v, err := x.claimTags(c)
	if err != nil || v.Rule == "tag-busy" || v.Rule == "image-name" {
		return v, err
	}
	// A tag that somebody wrote is theirs, whatever the registry has by its name. Some
	// image stores give those digests too.
	img := x.images.Tagged(tag)
	if v.Allowed() || v.Rule != policy.RuleTagInUse || img == nil || !same {
		return v, nil
	}
	repo, _ := splitTag(tag)
	var digests []string
	for _, d := range img.RepoDigests {
		if digest, ok := strings.CutPrefix(d, repo+"@"); ok {
			digests = append(digests, digest)
		}
	}
	if len(digests) == 0 {
		return v, nil
	}
	there, err := x.srv.Registry.Digest(ctx, x.query.Get("fromImage")+":"+x.query.Get("tag"), x.r.Header.Get("X-Registry-Auth"))
	if err != nil {
		return policy.Verdict{}, err
	}
	if !slices.Contains(digests, there) {
		return policy.MovedTag(v, tag, there), nil
	}
	x.setQuery("tag", there)
	return policy.Verdict{Outcome: policy.Allow, Rule: "pull-unmoved"}, nil
}

// fromRegistry reports whether an image came from the registry by a tag's name.
func fromRegistry(img *engine.Image, tag string) bool {
	repo, _ := splitTag(tag)
	return slices.ContainsFunc(img.RepoDigests, func(d string) bool { return strings.HasPrefix(d, repo+"@") })
}

// samePlatform reports whether a pull for a platform leaves a tag one of the
// platform that it is of now, if it is there.
func (x *exchange) samePlatform(ctx context.Context, tag, platform string) (bool, error) {
	if platform == "" {
		return true, nil
	}
	all, err := x.allImages()
	if err != nil {
		return false, err
	}
	img := all.Tagged(tag)
	if img == nil {
		return true, nil
	}
	now, err := x.srv.Registry.Platform(ctx, img.ID)
	if err != nil {
		return false, err
	}
	wanted := strings.ToLower(platform)
	for from, to := range map[string]string{"/x86_64": "/amd64", "/aarch64": "/arm64", "/arm64/v8": "/arm64", "/amd64/v1": "/amd64"} {
		if strings.HasSuffix(wanted, from) {
			wanted = strings.TrimSuffix(wanted, from) + to
		}
	}
	return wanted == now, nil
}

// pullAll decides about a pull of all tags of a repository: the Engine may move any
// that it has.
func (x *exchange) pullAll(repo string) (policy.Verdict, error) {
	if v := policy.ImageName(repo + ":latest"); !v.Allowed() {
		return v, nil
	}
	all, err := x.allImages()
	if err != nil {
		return policy.Verdict{}, err
	}
	var tags []string
	for i := range all {
		for _, tag := range all[i].RepoTags {
			if r, _ := splitTag(tag); r == repo {
				tags = append(tags, tag)
			}
		}
	}
	return x.claimTags(&claim{use: policy.PullTag, tags: tags, pulled: true, proof: fromRegistry})
}

// createImage pulls, or imports an archive of files as an image.
func createImage(x *exchange) (policy.Verdict, error) {
	x.one("fromImage")
	if x.query.Get("fromImage") != "" {
		return x.pull(x.r.Context())
	}
	if v := policy.ImportSource(x.query.Get("fromSrc"), x.switches().RemoteBuilds); !v.Allowed() {
		return v, nil
	}
	if v := policy.CommitChanges(x.query["changes"]); !v.Allowed() {
		return v, nil
	}
	x.one("fromSrc")
	return x.commitTag()
}
