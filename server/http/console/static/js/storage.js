/** What the browser keeps. Where it refuses, as the user has blocked site data, this page remembers it. */

export const local = kept(() => localStorage);
export const session = kept(() => sessionStorage);

function kept(find) {
  const memory = new Map();
  const tried = (use, instead) => {
    try {
      return use(find());
    } catch {
      return instead();
    }
  };
  return {
    get: (name) => tried((storage) => storage.getItem(name), () => memory.get(name) ?? null),
    set: (name, value) => tried((storage) => storage.setItem(name, value), () => memory.set(name, value)),
    remove: (name) => tried((storage) => storage.removeItem(name), () => memory.delete(name)),
  };
}
