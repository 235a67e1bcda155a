/** Bundle the runtime into a folder as a page loads it; the folder is replaced as a whole. */
export function writePage(folder: string): Promise<void>;
/** Where quad's page looks for it. */
export const PAGE_FOLDER: string;
